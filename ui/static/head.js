// Runs before the first paint: theme, language and column width as this browser keeps them.
(() => {
  const root = document.documentElement;
  const kept = (key) => {
    try {
      return JSON.parse(localStorage.getItem(`atelier:${key}`));
    } catch {
      return null;
    }
  };
  const light = matchMedia("(prefers-color-scheme: light)");
  const paint = () => {
    const theme = window.atelierTheme ?? kept("theme") ?? "dark";
    const dark = theme === "system" ? !light.matches : theme !== "light";
    root.classList.toggle("dark", dark);
    document.body?.classList.toggle("dark", dark);
  };
  paint();
  light.addEventListener("change", paint);
  window.atelierPaint = paint;
  // Gradio gives <body> the system's theme when it mounts; ours stays
  addEventListener("DOMContentLoaded", () => {
    paint();
    new MutationObserver(() => {
      if (document.body.classList.contains("dark") !== root.classList.contains("dark")) paint();
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });
  const language = kept("language");
  if (language) {
    // Gradio's own words follow the browser's language
    Object.defineProperty(navigator, "language", { get: () => language });
    Object.defineProperty(navigator, "languages", { get: () => [language] });
  }
  root.lang = (language || navigator.language).slice(0, 2);
  const width = kept("width");
  if (Number.isFinite(width)) root.style.setProperty("--params-width", `${width}px`);
})();
