// The figures at the pointer, below each curve. The page is whole without it.
for (const chart of document.querySelectorAll("svg[data-chart]")) {
  const { x: [first, last, left, right], lines } = JSON.parse(chart.dataset.chart);
  const rule = chart.querySelector(".rule");
  const readout = chart.parentElement.querySelector(".readout");
  const nearest = (points, step) => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
  const place = (step) => left + (step - first) / (last - first) * (right - left);
  chart.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const step = first + (point.x - left) / (right - left) * (last - first);
    const shown = lines.filter(([, points]) => points.length).map(([name, points]) => [name, nearest(points, step)]);
    const best = nearest(shown.map(([, found]) => found), step)[0];
    rule.setAttribute("transform", `translate(${place(best)} 0)`);
    rule.setAttribute("visibility", "visible");
    readout.textContent = `step ${best}: ` +
      shown.filter(([, found]) => found[0] === best).map(([name, found]) => `${name} ${found[1]}`).join(", ");
  });
  chart.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden");
    readout.textContent = "";
  });
}
