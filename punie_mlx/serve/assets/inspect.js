// Asks the server that the page came from, and writes down what comes. All text goes in as text, never as markup: what
// a model says may hold anything. Characters that nobody sees stand there by their code points.
{
  const find = (id) => document.getElementById(id);
  const HIDDEN = /^[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]$/u;
  const SPACES = { " ": "·", "\t": "→", "\n": "↵" };
  const KINDS = {
    text: "text", reasoning: "reasoning", marker: "marker", call_started: "call begins", arguments: "arguments",
    call: "call", malformed: "malformed",
  };
  const make = (name, text = "", kind = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const point = (char) => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  // `text` at the end of `element`: hidden characters as code points and, where `marked`, white space as marks.
  const write = (element, text, marked = false) => {
    let plain = "";
    const flush = () => { if (plain) element.append(plain); plain = ""; };
    for (const char of text) {
      if (marked && SPACES[char]) {
        flush();
        element.append(make("u", SPACES[char]), char === "\n" ? "\n" : "");
      } else if (HIDDEN.test(char) && char !== "\n" && char !== "\t") {
        flush();
        element.append(make("span", point(char), "cp"));
      } else plain += char;
    }
    flush();
    return element;
  };
  const visible = (text) => [...text].map((c) => (HIDDEN.test(c) && c !== "\n" && c !== "\t" ? point(c) : c)).join("");
  const percent = (p) => {
    if (p === null || p === undefined) return "?";
    if (p > 0 && p < 0.0001) return "below 0.01%";
    return p > 0.9999 && p < 1 ? "above 99.99%" : `${Number((100 * p).toPrecision(4))}%`;
  };
  const plural = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

  // ---- what is asked ----

  class Wrong extends Error {
    constructor(message, field) { super(message); this.field = field; }
  }
  const own = () => {
    const text = find("own").value.trim();
    if (!text) return [];
    let value;
    try { value = JSON.parse(text); } catch (error) { throw new Wrong(`This is no JSON: ${error.message}`, "own"); }
    return (Array.isArray(value) ? value : [value]).map((tool, i) => {
      const inner = tool?.function ?? tool;
      if (typeof inner !== "object" || inner === null || Array.isArray(inner) || typeof inner.name !== "string" || !inner.name)
        throw new Wrong(`Tool ${i + 1} has no name: give {"type": "function", "function": {"name": …, "parameters": …}}`, "own");
      const schema = inner.parameters ?? {};
      if (typeof schema !== "object" || Array.isArray(schema))
        throw new Wrong(`The parameters of ${visible(inner.name)} must be a JSON schema, an object`, "own");
      return { type: "function", function: inner };
    });
  };
  const picked = () => [...document.querySelectorAll("input.tool:checked")].map((box) => JSON.parse(box.value));
  const number = (id) => (find(id).value.trim() === "" ? undefined : Number(find(id).value));
  const request = () => {
    const tools = [...picked(), ...own()];
    const choice = find("choice").value;
    const system = find("system").value;
    return {
      messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: find("user").value }],
      ...(tools.length ? { tools } : {}),
      ...(choice.startsWith("=") ? { tool_choice: { type: "function", function: { name: choice.slice(1) } } }
        : choice !== "auto" ? { tool_choice: choice } : {}),
      ...(find("constrain").value ? { constrain: find("constrain").value } : {}),
      temperature: number("temperature"),
      max_tokens: number("most"),
    };
  };
  // Each tool by its name among the choices; a choice whose tool is gone falls back to the first.
  const offer = () => {
    let names = [];
    try { names = [...picked(), ...own()].map((tool) => tool.function.name); mark(null); } catch (error) { mark(error); }
    const select = find("choice"), before = select.value;
    for (const option of [...select.options].slice(3)) option.remove();
    for (const name of new Set(names)) {
      const option = make("option", `${visible(name)}, and no other`);
      option.value = `=${name}`;
      select.append(option);
    }
    select.value = [...select.options].some((o) => o.value === before) ? before : "auto";
  };
  const mark = (error) => {
    const wrong = error?.field === "own";
    find("own").setAttribute("aria-invalid", String(wrong));
    find("own-error").textContent = wrong ? visible(error.message) : "";
    if (wrong) find("own-tools").open = true;
  };

  // ---- what comes ----

  const say = (text) => { find("status").textContent = text; };
  const fail = (text) => { find("error").textContent = visible(text); };
  let shown; // of the answer that is on the page
  const clear = () => {
    waiting.clear();
    shown = { tokens: 0, state: "", events: [], top: {}, done: "" };
    for (const id of ["prompt-tokens", "answer-tokens", "grammar", "markers", "timeline", "parsed"]) find(id).replaceChildren();
    for (const id of ["prompt-tokens", "answer-tokens"]) {
      find(id).removeAttribute("aria-activedescendant");
      find(id).setAttribute("aria-label", find(id).dataset.name);
    }
    for (const id of ["prompt", "answer", "events", "result"]) find(id).hidden = true;
    fail("");
  };
  // A token, and the end of the line behind it where it ends one, so that its id stands in front of that.
  const chip = (token) => {
    const element = make("i", "", token.class);
    element.setAttribute("role", "option");
    element.title = token.title;
    if (token.id !== undefined) element.dataset.id = token.id;
    if (token.kind === "end") element.textContent = "end";
    else if (token.text) write(element, token.text, true);
    else element.append(make("span", `#${token.id}`, "cp"));
    const last = element.lastChild;
    return last.data === "\n" ? [element, last] : [element];
  };
  const gathered = (elements) => { // however many: as arguments of one call they would be too many
    const all = document.createDocumentFragment();
    for (const element of elements) all.append(element);
    return all;
  };
  const count = (id, n) => find(id).setAttribute("aria-label", `${find(id).dataset.name}, ${plural(n, "token")}`);
  // What comes is put into the page some times a second, the seldomer the longer it takes to lay out the whole: to do
  // so for each token would take longer than the model.
  const PAUSE = 50;
  const waiting = new Map();
  let timer = 0, pause = PAUSE;
  const append = (id, ...elements) => {
    if (!waiting.has(id)) waiting.set(id, []);
    waiting.get(id).push(...elements);
    timer ||= setTimeout(flush, pause);
  };
  const flush = () => {
    const began = performance.now();
    clearTimeout(timer);
    timer = 0;
    for (const [id, elements] of waiting) {
      const box = find(id);
      const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60 && !box.querySelector("i.at");
      box.append(gathered(elements));
      if (follows) box.scrollTop = box.scrollHeight;
      if (id === "answer-tokens") count(id, shown.tokens);
    }
    waiting.clear();
    pause = Math.max(PAUSE, 3 * (performance.now() - began));
  };
  const prompt = ({ prompt, tokens, grammar, format, watched, limit }) => {
    find("prompt-tokens").append(gathered(prompt.flatMap((id) => chip(tokens[id]))));
    count("prompt-tokens", prompt.length);
    write(find("grammar"), `${plural(prompt.length, "token")}, ${plural(limit, "token")} at most may follow. Calls: ${format}. `
      + `Grammar: ${grammar.state}${grammar.reason ? `, ${grammar.reason}` : ""}.`);
    for (const text of Object.keys(watched)) {
      const row = make("tr"), head = make("th");
      head.scope = "row";
      head.append(write(make("code"), text));
      row.append(head, ...["", "", ""].map(() => make("td", "–", "n")));
      find("markers").append(row);
      shown.top[text] = { row, most: -1 };
    }
    for (const id of ["prompt", "answer", "events"]) find(id).hidden = false;
    say(`The prompt has ${plural(prompt.length, "token")}.`);
    if (find("answer").getBoundingClientRect().top > innerHeight * 0.7) find("prompt").scrollIntoView();
  };
  const step = (found) => {
    if (found.class !== undefined) {
      const label = found.kind !== "end" && found.state !== shown.state ? [make("b", found.state, "state")] : [];
      label.forEach((l) => l.setAttribute("aria-hidden", "true"));
      append("answer-tokens", ...label, ...chip(found));
      if (found.kind !== "end") {
        shown.state = found.state;
        shown.tokens += 1;
      }
      markers(found);
    }
    found.events.forEach((event) => add(event));
  };
  const markers = ({ markers, rest, kind }) => {
    const at = shown.tokens + (kind === "end" ? 1 : 0);
    for (const [text, p] of Object.entries(markers)) {
      const { row, most } = shown.top[text];
      const [, now, best, where] = row.children;
      now.textContent = p === null && rest >= 0.0001 ? `at most ${percent(rest)}` : percent(p ?? rest);
      if (p !== null && p > most) {
        shown.top[text].most = p;
        best.textContent = percent(p);
        where.textContent = at.toLocaleString("en");
      }
    }
  };
  const told = (event) => {
    switch (event.kind) {
      case "call_started": return event.name;
      case "arguments": return event.json;
      case "call": return `${event.name} ${event.json}${event.rescued ? " (rescued)" : ""}`;
      case "malformed": return `${event.reason}: ${event.raw}`;
      default: return event.text;
    }
  };
  // A line for each event; one that goes on with the text of the last grows that line.
  const add = (event) => {
    const last = shown.events.at(-1);
    const grows = last && last.kind === event.kind && last.index === event.index
      && ["text", "reasoning", "arguments", "marker"].includes(event.kind);
    if (grows) {
      write(last.code, told(event), true);
      return;
    }
    const line = make("li", "", event.kind), code = write(make("code"), told(event), true);
    line.append(make("span", String(Math.max(shown.tokens, 1)), "at"), make("b", KINDS[event.kind] ?? event.kind), code);
    append("timeline", line);
    shown.events.push({ kind: event.kind, index: event.index, code });
    if (event.kind === "call_started") say(`A call of ${visible(event.name)} begins.`);
    if (event.kind === "reasoning") say("The model thinks.");
    if (event.kind === "text" && event.text.trim()) say("The model answers.");
  };
  const part = (title, text) => [make("h3", title), write(labelled(make("pre"), title), text)];
  const labelled = (element, name) => {
    element.tabIndex = 0;
    element.setAttribute("aria-label", name);
    return element;
  };
  // JSON in lines. Its words stay as they are: JSON.parse would make another number of 1.0, or of one with many digits.
  const pretty = (text) => {
    try { JSON.parse(text); } catch { return text; }
    const words = text.match(/"(?:[^"\\]|\\.)*"|[[\]{}:,]|[^\s[\]{}:,"]+/g);
    let depth = 0, before = "", out = "";
    for (const word of words) {
      const opens = /^[[{]/.test(before), closes = /^[\]}]/.test(word);
      if (closes) depth -= 1;
      if ((opens && !closes) || before === "," || (closes && !opens)) out += `\n${" ".repeat(depth)}`;
      out += word === ":" ? ": " : word;
      if (/^[[{]/.test(word)) depth += 1;
      before = word;
    }
    return out;
  };
  const closing = ({ message, finish_reason, punie, usage }) => {
    const calls = message.tool_calls ?? [], parsed = find("parsed");
    for (const call of calls) parsed.append(...part(`Call of ${visible(call.function.name)}`, pretty(call.function.arguments)));
    if (message.reasoning_content) parsed.append(...part("Reasoning", message.reasoning_content));
    if (message.content || !calls.length) parsed.append(...part("Content", message.content ?? ""));
    for (const problem of punie.problems)
      parsed.append(...part(`Problem: ${problem.kind}`, `${problem.detail}${problem.raw ? `\n${problem.raw}` : ""}`));
    parsed.append(...part("As the API tells it", JSON.stringify({ message, finish_reason, punie, usage }, null, 1)));
    find("result").hidden = false;
    shown.done = `Done: ${plural(shown.tokens, "token")}, ${plural(calls.length, "call")}, finish reason ${finish_reason}.`;
    flush();
  };

  // ---- asking ----

  let running = null; // what ends the request under way
  const take = (event) => {
    if (event.startsWith(":")) {
      if (!shown.tokens) say(`Waiting: ${event.slice(1).trim()}.`);
      return;
    }
    const data = event.replace(/^data: /, "");
    if (!data || data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new Error(value.error.message);
    for (const choice of value.choices) {
      if (choice.prompt) prompt(choice);
      else if (choice.step) step(choice.step);
      else if (choice.message) closing(choice);
    }
  };
  const refused = async (response) => {
    let error = {};
    try { ({ error } = await response.json()); } catch { error = { message: `the server answered with status ${response.status}` }; }
    if (response.status === 401) {
      find("key-row").hidden = false;
      find("key").setAttribute("aria-invalid", "true");
      find("key").focus();
      return find("key").value ? "This API key is not the server's." : "This server wants an API key: type it, and ask again.";
    }
    if (/^tools\b/.test(error.param ?? "") && find("own").value.trim()) mark(new Wrong(error.message, "own"));
    return error.message;
  };
  const ask = async () => {
    let body;
    try { body = JSON.stringify(request()); } catch (error) {
      mark(error);
      find("own").focus();
      return;
    }
    running?.abort();
    const mine = (running = new AbortController());
    const current = () => running === mine;
    clear();
    mark(null);
    find("stop").disabled = false;
    say("Asked.");
    const key = find("key").value;
    const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    try {
      const response = await fetch("/inspect/stream", { method: "POST", headers, body, signal: mine.signal, cache: "no-store" });
      if (!current()) return;
      if (!response.ok) {
        const why = await refused(response);
        if (!current()) return;
        say("");
        fail(why);
        return;
      }
      find("key").setAttribute("aria-invalid", "false");
      const decoder = new TextDecoder();
      const reader = response.body.getReader();
      let rest = "";
      for (let got = await reader.read(); !got.done && current(); got = await reader.read()) {
        const events = (rest + decoder.decode(got.value, { stream: true })).split("\n\n");
        rest = events.pop();
        events.forEach(take);
      }
      if (current() && !shown.done) throw new Error("the server ended the answer before its time");
    } catch (error) {
      if (!current()) return;
      if (mine.signal.aborted) say(`Stopped after ${plural(shown.tokens, "token")}.`);
      else {
        mine.abort();
        say("");
        fail(error instanceof TypeError ? `the server cannot be reached (${error.message}): does it still run?` : error.message);
      }
    } finally {
      if (current()) {
        flush();
        running = null;
        if (document.activeElement === find("stop")) find("ask").focus();
        find("stop").disabled = true;
        if (shown.done) say(shown.done);
      }
    }
  };
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  find("stop").addEventListener("click", () => running?.abort());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest?.("form")) {
      event.preventDefault();
      find("form").requestSubmit();
    }
  });
  find("own").addEventListener("input", offer);
  for (const box of document.querySelectorAll("input.tool")) box.addEventListener("change", offer);
  clear();
  offer();
}
