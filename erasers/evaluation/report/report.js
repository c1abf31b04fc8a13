"use strict";
const root = document.documentElement;

function slidable(pair) {
  const slider = pair.querySelector(".slider");
  const show = () => {
    pair.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.value} % after`);
  };
  const move = event => {
    const box = pair.getBoundingClientRect();
    slider.value = Math.round(100 * (event.clientX - box.left) / box.width);
    show();
  };
  slider.addEventListener("input", show);
  pair.addEventListener("pointerdown", event => {
    if (!root.classList.contains("slide") || event.button) return;
    pair.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true, focusVisible: false });
    move(event);
  });
  pair.addEventListener("pointermove", event => {
    if (pair.hasPointerCapture(event.pointerId)) move(event);
  });
  pair.addEventListener("dragstart", event => event.preventDefault());
  show();
}

document.querySelectorAll(".pair").forEach(slidable);
for (const choice of document.getElementsByName("view"))
  choice.addEventListener("change", () => root.classList.toggle("slide", choice.value === "slide"));
root.classList.add("slidable", "slide");
document.querySelector("[name=view][value=slide]").checked = true;
