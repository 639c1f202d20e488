// The page works without this; inside Airflow's frame it adds two things.
(() => {
  "use strict";
  if (window.parent === window) return;
  let outer;
  try {
    outer = window.parent.document;
  } catch {
    return; // framed by another origin: leave it alone
  }

  // Airflow's theme may differ from the system's.
  const follow = () => {
    const { classList, dataset } = outer.documentElement;
    const theme = classList.contains("dark") || dataset.theme === "dark" ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
  };
  follow();
  new MutationObserver(follow).observe(outer.documentElement, { attributes: true, attributeFilter: ["class", "data-theme"] });

  // The frame may not navigate the window around it, so Airflow's own pages are opened by a link that stands there.
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a[data-airflow]") : null;
    if (!link || event.defaultPrevented || event.button !== 0) return;
    event.preventDefault();
    const door = outer.createElement("a");
    door.href = link.href;
    if (event.ctrlKey || event.metaKey || event.shiftKey) door.target = "_blank";
    outer.body.append(door);
    door.click();
    door.remove();
  });
})();
