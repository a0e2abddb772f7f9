"use strict";
(() => {
  const body = document.body;
  const state = document.getElementById("state");
  const least = 0.05, most = 4;
  let scale = 0; // 0: as it fits
  body.dataset.errors = "0";
  addEventListener("error", () => { body.dataset.errors = String(Number(body.dataset.errors) + 1); });

  const svg = () => document.querySelector("#drawing svg");
  const natural = () => svg().viewBox.baseVal;
  // Text has to be readable without a glass: what does not fit is scrolled.
  const fitting = () => Math.min(1, document.getElementById("drawing").clientWidth / natural().width);
  const initial = () => Math.max(fitting(), 0.75);

  function show() {
    const by = scale || initial();
    svg().setAttribute("width", natural().width * by);
    svg().setAttribute("height", natural().height * by);
  }
  function zoom(to) {
    scale = Math.min(most, Math.max(least, to));
    show();
  }
  const by = (factor) => zoom((scale || initial()) * factor);
  document.getElementById("smaller").onclick = () => by(1 / 1.25);
  document.getElementById("larger").onclick = () => by(1.25);
  document.getElementById("natural").onclick = () => zoom(1);
  document.getElementById("fit").onclick = () => zoom(fitting());
  addEventListener("wheel", (event) => {
    if (event.ctrlKey && event.target.closest("#drawing")) {
      event.preventDefault();
      by(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }
  }, { passive: false });
  addEventListener("resize", show);

  async function refresh() {
    const kept = document.getElementById("drawing");
    const place = [kept.scrollLeft, kept.scrollTop];
    const open = document.querySelector("details").open;
    try {
      const answer = await fetch(body.dataset.live, { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      document.getElementById("picture").innerHTML = await answer.text();
      document.querySelector("details").open = open;
      show();
      const drawn = document.getElementById("drawing");
      [drawn.scrollLeft, drawn.scrollTop] = place;
      state.textContent = "live";
      body.dataset.refreshed = String(Number(body.dataset.refreshed || 0) + 1);
    } catch (error) {
      state.textContent = "no answer: this is the last picture";
    }
    setTimeout(refresh, document.hidden ? 10000 : 2000);
  }

  show();
  body.dataset.ready = "yes";
  if (body.dataset.live) setTimeout(refresh, 2000);
})();
