// Draws each figure when the reader comes near it: a page of ten figures opens as fast as one of none.
const draw = (place) => {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "yes";
  const { data, layout, config } = JSON.parse(place.nextElementSibling.textContent);
  Plotly.newPlot(place, data, layout, config);
};
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => { near.unobserve(entry.target); draw(entry.target); }),
  { rootMargin: "600px" },
);
const places = document.querySelectorAll(".sl-figure");
places.forEach((place) => near.observe(place));
window.addEventListener("beforeprint", () => places.forEach(draw));
