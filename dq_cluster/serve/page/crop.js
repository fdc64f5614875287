// A part of a picture, chosen by dragging over it.

const SMALLEST = 8; // pixels on the screen; less is a click

// An element that shows `image` and calls `onCrop` with the data URL of the part that was chosen.
export function croppable(image, onCrop) {
  const box = document.createElement("div");
  const frame = document.createElement("div");
  box.className = "crop";
  box.title = "Drag over a part to search for that part";
  frame.hidden = true;
  box.append(image, frame);
  image.draggable = false;
  let start = null;

  const place = (event) => {
    const area = image.getBoundingClientRect();
    return {
      x: Math.min(Math.max(event.clientX - area.left, 0), area.width),
      y: Math.min(Math.max(event.clientY - area.top, 0), area.height),
    };
  };
  const chosen = (end) => ({
    left: Math.min(start.x, end.x), top: Math.min(start.y, end.y),
    width: Math.abs(start.x - end.x), height: Math.abs(start.y - end.y),
  });

  box.onpointerdown = (event) => {
    start = place(event);
    box.setPointerCapture(event.pointerId);
  };
  box.onpointermove = (event) => {
    if (!start) return;
    frame.hidden = false;
    for (const [name, value] of Object.entries(chosen(place(event)))) frame.style[name] = value + "px";
  };
  box.onpointerup = (event) => {
    if (!start) return;
    const part = chosen(place(event));
    start = null;
    frame.hidden = true;
    if (part.width >= SMALLEST && part.height >= SMALLEST) onCrop(cut(image, part));
  };
  return box;
}

function cut(image, part) {
  const scale = image.naturalWidth / image.getBoundingClientRect().width;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(part.width * scale);
  canvas.height = Math.round(part.height * scale);
  canvas.getContext("2d").drawImage(
    image, part.left * scale, part.top * scale, canvas.width, canvas.height,
    0, 0, canvas.width, canvas.height,
  );
  return canvas.toDataURL("image/png");
}
