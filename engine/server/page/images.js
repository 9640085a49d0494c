// The page of an image classifier.
const emptyClasses = "What the model sees appears here.";
let shown = 0, previewUrl = null;

function showClasses(predictions) {
  $("classes").classList.remove("old");
  $("classes").replaceChildren(...predictions.map(({ label, probability }) => {
    const row = document.createElement("li"), name = document.createElement("span"), value = document.createElement("span"), bar = document.createElement("i");
    name.textContent = label;
    value.textContent = percent(Math.log(probability));
    bar.style.setProperty("--share", (probability * 100).toFixed(2) + "%");
    row.append(name, value, bar);
    return row;
  }));
}

function clearClasses() {
  const row = document.createElement("li");
  row.className = "empty";
  row.textContent = emptyClasses;
  $("classes").classList.remove("old");
  $("classes").replaceChildren(row);
}

function showPreview(file) {
  if (previewUrl) URL.revokeObjectURL(previewUrl);
  previewUrl = URL.createObjectURL(file);
  $("preview").src = previewUrl;
  $("preview").alt = file.name || "pasted image";
  $("preview").hidden = false;
  $("drop").classList.add("filled");
  const [name, size] = $("drop-hint").children;
  name.textContent = file.name || "Pasted image";
  size.textContent = `${bytes(file.size)} · click for another`;
}

async function classify(file) {
  const mine = ++shown, begun = performance.now();
  showError("", "image-error");
  $("image-stats").textContent = "";
  $("classes").classList.add("old");
  showPreview(file);
  try {
    const response = await fetch("v1/classify", { method: "POST", headers: headers(file.type === "image/png" ? file.type : "image/jpeg"), body: file });
    const message = response.ok ? "" : await failure(response);
    const answer = response.ok && await response.json();
    if (mine !== shown) return;  // another image was chosen meanwhile
    if (message) throw new Error(message.replace(/^Image: /, "The image "));
    showClasses(answer.predictions);
    $("image-stats").textContent = `answered after ${((performance.now() - begun) / 1e3).toFixed(2)} s`;
  } catch (error) {
    if (mine !== shown) return;
    clearClasses();
    showError(error.message === "Failed to fetch" ? "The server does not answer." : error.message, "image-error");
  }
}

function firstImage(data) {
  return [...data.files].find(file => file.type.startsWith("image/")) || data.files[0];
}

$("preview").addEventListener("error", () => { $("preview").hidden = true; });
$("file").addEventListener("change", () => {
  if ($("file").files.length) classify($("file").files[0]);
  $("file").value = "";  // so that the same file can be chosen again
});
for (const name of ["dragover", "drop"]) document.addEventListener(name, event => event.preventDefault());
$("drop").addEventListener("dragover", () => $("drop").classList.add("over"));
for (const name of ["dragleave", "drop"]) $("drop").addEventListener(name, () => $("drop").classList.remove("over"));
document.addEventListener("drop", event => {
  const file = firstImage(event.dataTransfer);
  if (file && document.body.className === "images") classify(file);
});
document.addEventListener("paste", event => {
  const file = firstImage(event.clipboardData);
  if (file && document.body.className === "images") classify(file);
});
clearClasses();
