// The search field above the table of parameters: rows that contain every word stay.
document.addEventListener("DOMContentLoaded", () => {
  const field = document.getElementById("parameter-search");
  if (!field) return;
  const rows = [...document.querySelectorAll("table.parameters tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const count = document.getElementById("parameter-count");
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} parameters`;
  };
  field.addEventListener("input", show);
  show();
});
