// The browser of LoRAs: cards to be searched, put into the prompt, and edited.
import { openAbout } from "./about.js";
import { isIn, withCard, withoutCard } from "./prompt.js";

const PAGE = 60;
const ICON = "M12 3.5 3.5 8 12 12.5 20.5 8Z M4 12.2l8 4.3 8-4.3 M4 16.2l8 4.3 8-4.3";
const STAR = "m12 4 2.5 5.2 5.5.8-4 3.9 1 5.6-5-2.7-5 2.7 1-5.6-4-3.9 5.5-.8Z";
const PENCIL = "M4 20l1-4L16.5 4.5a1.4 1.4 0 0 1 2 0l1 1a1.4 1.4 0 0 1 0 2L8 19Z";
const kept = { q: "", sort: "name", favourites: false, fitting: true };

export function startBrowser(api) {
  api.addPromptButton({
    label: api.words("open.help"),
    text: api.words("open"),
    icon: ICON,
    class: "lora-open",
    run: () => open(api),
  });
}

function open(api) {
  const { element, words } = api;
  const family = api.model?.family ?? "";
  let cards = [];
  let total = 0;
  let families = {};
  let query = {};
  let asked = 0;
  let timer = 0;

  const search = element("input", {
    type: "search",
    class: "line",
    placeholder: words("search"),
    "aria-label": words("search"),
    value: kept.q,
    autofocus: true,
    oninput: () => {
      kept.q = search.value;
      clearTimeout(timer);
      timer = setTimeout(load, 150);
    },
  });
  const sort = element(
    "select",
    { class: "select", "aria-label": words("sort"), onchange: () => ((kept.sort = sort.value), load()) },
    ...["name", "newest", "oldest"].map((way) => element("option", { value: way }, words(`sort.${way}`))),
  );
  sort.value = kept.sort;
  const switchOf = (name, text, isShown = true) => {
    const chip = element(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-pressed": String(kept[name]),
        onclick: () => {
          kept[name] = !kept[name];
          chip.setAttribute("aria-pressed", String(kept[name]));
          load();
        },
      },
      text,
    );
    chip.hidden = !isShown;
    return chip;
  };
  const favourites = switchOf("favourites", words("favourites"));
  const fitting = switchOf("fitting", "", Boolean(family));
  const count = element("p", { class: "lora-count", role: "status" });
  const grid = element("div", { class: "lora-grid" });
  const more = api.button({ label: words("more"), text: words("more"), run: () => load(true) });
  const scroll = element("div", { class: "lora-scroll" }, grid, element("div", { class: "lora-more" }, more));
  // the next page is there before its place is scrolled to
  const coming = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && load(true), {
    root: scroll,
    rootMargin: "800px",
  });

  async function load(further = false) {
    const now = ++asked;
    coming.disconnect();
    if (!further) query = { q: kept.q, sort: kept.sort, favourites: kept.favourites, family: kept.fitting ? family : "" };
    const page = new URLSearchParams({ ...query, offset: further ? cards.length : 0, limit: PAGE });
    const answer = await fetch(api.url(`cards?${page}`)).catch(() => null);
    const said = await answer?.json().catch(() => null);
    if (now !== asked || !grid.isConnected) return;
    if (!answer?.ok) return void (count.textContent = said?.detail ?? words("nothing"));
    ({ total, families } = said);
    fitting.textContent = words("fitting", { family: families[family] ?? family });
    const isAsking = query.q || query.favourites || query.family;
    count.textContent = total ? words("count", { n: total, count: total }) : words(isAsking ? "nothing" : "none");
    cards = further ? [...cards, ...said.cards] : said.cards;
    if (further) grid.append(...said.cards.map(draw));
    else {
      paint();
      scroll.scrollTop = 0;
    }
    more.hidden = cards.length >= total;
    coming.observe(more);
  }

  const paint = () => grid.replaceChildren(...cards.map(draw));

  // The card has changed on the server.
  function changed(card) {
    cards = cards.map((other) => (other.id === card.id ? { ...other, ...card } : other));
    paint();
  }

  function draw(card) {
    const { title } = card;
    const there = isIn(api.prompt, card);
    const main = element(
      "button",
      {
        type: "button",
        class: "lora-main",
        "aria-pressed": String(there),
        "aria-label": words(there ? "take" : "insert", { title }),
        disabled: Boolean(card.problem),
        onclick: () => {
          (there ? withoutCard : withCard)(api, card);
          const drawn = draw(card);
          whole.replaceWith(drawn);
          drawn.querySelector(".lora-main").focus();
        },
      },
      card.preview
        ? element("img", { src: api.url(card.preview), alt: "", loading: "lazy" })
        : element("span", { class: "lora-blank", "aria-hidden": "true" }, title.slice(0, 1).toUpperCase()),
      element(
        "span",
        { class: "lora-words" },
        element("strong", {}, title),
        card.problem
          ? element("small", { class: "lora-problem" }, card.problem)
          : element("small", {}, card.trigger || card.tags.join(", ")),
      ),
    );
    const star = api.button({
      label: words(card.favourite ? "unfavour" : "favour", { title }),
      icon: STAR,
      class: `small lora-star ${card.favourite ? "on" : ""}`,
      "aria-pressed": String(card.favourite),
      run: async () => changed(await api.post(`cards/${card.id}/favourite`, { favourite: !card.favourite })),
    });
    const about = api.button({
      label: words("edit", { title }),
      icon: PENCIL,
      class: "small lora-about",
      run: () => openAbout(api, card.id, families, changed),
    });
    const whole = element(
      "article",
      { class: "lora-card", data: { lora: card.name } },
      main,
      card.badge ? element("span", { class: "lora-badge" }, card.badge) : null,
      element("span", { class: "lora-tools" }, star, about),
    );
    return whole;
  }

  const dialog = api.dialog(
    words("browse"),
    element("div", { class: "lora-bar" }, search, element("span", { class: "lora-select" }, sort), favourites, fitting),
    count,
    scroll,
  );
  dialog.classList.add("lora-browser");
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  more.hidden = true;
  load();
}
