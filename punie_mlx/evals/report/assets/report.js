// Filter, search and order of the failed cases. The page can be read whole without it.
{
  const form = document.getElementById("filter");
  const list = document.getElementById("cases");
  const find = (id) => document.getElementById(id);
  const reveal = () => {
    const target = location.hash && find(decodeURIComponent(location.hash.slice(1)));
    const holder = target && target.closest("details.case");
    if (!holder) return;
    holder.hidden = false;
    holder.open = true;
    holder.querySelector("summary").focus({ preventScroll: true });
    holder.scrollIntoView({ block: "start" });
  };
  addEventListener("hashchange", reveal);
  if (form) {
    const cases = [...list.children];
    const texts = new Map();
    const text = (item) => texts.get(item) ?? texts.set(item, item.textContent.toLowerCase()).get(item);
    const failed = (item) => item.dataset.failed.split(" ").filter(Boolean);
    const orders = {
      "": () => 0,
      failed: (a, b) => failed(b).length - failed(a).length,
      category: (a, b) => a.dataset.category.localeCompare(b.dataset.category),
      seconds: (a, b) => b.dataset.seconds - a.dataset.seconds,
    };
    const fits = (item) => {
      const by = find("by").value;
      if (by === "*" ? !item.dataset.passed : by && !failed(item).includes(by)) return false;
      if (find("category").value && item.dataset.category !== find("category").value) return false;
      const words = find("find").value.toLowerCase().split(/\s+/).filter(Boolean);
      return words.every((word) => text(item).includes(word));
    };
    const filter = () => {
      let shown = 0;
      for (const item of cases) {
        item.hidden = !fits(item);
        shown += !item.hidden;
      }
      find("count").textContent = shown === cases.length ? `${shown} cases` : `${shown} of ${cases.length} cases`;
    };
    const order = () => list.append(...[...cases].sort(orders[find("order").value]));
    form.addEventListener("submit", (event) => event.preventDefault());
    find("find").addEventListener("input", filter);
    for (const id of ["by", "category"]) find(id).addEventListener("change", filter);
    find("order").addEventListener("change", order);
    find("fold").addEventListener("click", () => cases.forEach((item) => { item.open = false; }));
    form.hidden = false;
  }
  reveal();
}
