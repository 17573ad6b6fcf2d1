// Helpers for the page. Names from the data enter the page only as textContent.

export function byId<T extends HTMLElement>(id: string): T {
  return document.getElementById(`ex-${id}`) as T;
}

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  text = "",
  attributes: Record<string, string> = {},
): HTMLElementTagNameMap[K] {
  const found = document.createElement(tag);
  if (text) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  return found;
}

export function option(text: string, value: string): HTMLOptionElement {
  return make("option", text, { value });
}

/** Suggest the names that contain the typed text; Enter takes the first, arrow keys walk, Escape closes. */
export function suggest(input: HTMLInputElement, names: string[], take: (index: number) => void): void {
  const list = document.getElementById(input.getAttribute("aria-controls")!)!;
  const box = input.closest("div")!;
  const show = () => {
    const found = matches(names, input.value, 8);
    list.replaceChildren(
      ...found.map((index) => {
        const button = make("button", names[index]!, { type: "button" });
        button.addEventListener("click", () => choose(index));
        const item = make("li");
        item.append(button);
        return item;
      }),
    );
    if (input.value.trim() && !found.length) list.replaceChildren(make("li", "no name contains this text"));
  };
  /** Close the list. The focus goes first, because the button that may have it is removed. */
  const shut = () => {
    input.focus({ preventScroll: true });
    list.replaceChildren();
  };
  const choose = (index: number) => {
    input.value = names[index]!;
    shut();
    take(index);
  };
  input.addEventListener("input", show);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const [first] = matches(names, input.value, 1);
    if (first !== undefined) choose(first);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && list.childElementCount) {
      event.preventDefault(); // it would also empty the field
      shut();
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const stops = [input, ...list.querySelectorAll("button")];
    stops[stops.indexOf(document.activeElement as HTMLInputElement) + step]?.focus();
  });
  list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus, so the list stays
  box.addEventListener("focusout", (event) => {
    if (!box.contains(event.relatedTarget as Node | null)) list.replaceChildren();
  });
}

/** Return the names that contain a text: first the same name, then those that begin with it. */
export function matches(names: string[], text: string, n: number): number[] {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const ranked: number[][] = [[], [], []];
  for (let i = 0; i < names.length; i++) {
    const name = names[i]!.toLowerCase();
    const at = name.indexOf(wanted);
    if (at < 0) continue;
    const rank = ranked[name === wanted ? 0 : at === 0 ? 1 : 2]!;
    if (rank.length < n) rank.push(i);
  }
  return ranked.flat().slice(0, n);
}

export function download(name: string, text: string): void {
  const link = make("a", "", { download: name, href: URL.createObjectURL(new Blob([text], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
