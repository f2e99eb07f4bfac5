// Strips of tokens: a key or a click reaches a token, and what is known about it stands below its strip. Works for
// strips and tokens that come later, too. All of it can be read without: the title of each token says the same.
{
  let made = 0;
  const beside = (strip) => (strip.nextElementSibling?.matches(".about") ? strip.nextElementSibling : null);
  const reach = (strip, token) => {
    if (!token) return;
    const before = strip.querySelector("i.at");
    before?.classList.remove("at");
    before?.removeAttribute("aria-selected");
    token.id ||= `token-${made++}`;
    token.classList.add("at");
    token.setAttribute("aria-selected", "true");
    strip.setAttribute("aria-activedescendant", token.id);
    token.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    const about = beside(strip);
    if (about) {
      about.textContent = token.title;
      about.classList.add("told");
    }
  };
  const walk = (token, forward, fits = () => true) => {
    let next = token;
    do next = forward ? next.nextElementSibling : next.previousElementSibling;
    while (next && !(next.matches("i") && fits(next)));
    return next;
  };
  // The token of the next line that lies nearest.
  const line = (token, down) => {
    const box = (element) => element.getClientRects()[0] ?? element.getBoundingClientRect();
    const from = box(token);
    let best = null, top = null;
    for (let next = walk(token, down); next; next = walk(next, down)) {
      const at = box(next);
      if (Math.abs(at.top - from.top) < 4) continue;
      if (top !== null && Math.abs(at.top - top) >= 4) break;
      top = at.top;
      if (!best || Math.abs(at.left - from.left) < Math.abs(box(best).left - from.left)) best = next;
    }
    return best;
  };
  const control = (token) => token.classList.contains("control");
  const keys = {
    ArrowRight: (token) => walk(token, true),
    ArrowLeft: (token) => walk(token, false),
    ArrowDown: (token) => line(token, true),
    ArrowUp: (token) => line(token, false),
    PageDown: (token) => walk(token, true, control),
    PageUp: (token) => walk(token, false, control),
    Home: (token, strip) => strip.querySelector("i"),
    End: (token, strip) => [...strip.querySelectorAll("i")].pop(),
  };
  addEventListener("keydown", (event) => {
    const strip = event.target.closest?.(".strip");
    if (!strip || !keys[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    const token = strip.querySelector("i.at");
    reach(strip, token ? keys[event.key](token, strip) : strip.querySelector("i"));
    event.preventDefault();
  });
  addEventListener("focusin", (event) => {
    const strip = event.target.closest?.(".strip");
    if (strip && !strip.querySelector("i.at") && event.target === strip) reach(strip, strip.querySelector("i"));
  });
  addEventListener("click", (event) => {
    const token = event.target.closest?.(".strip i");
    if (token) reach(token.closest(".strip"), token);
  });
}
