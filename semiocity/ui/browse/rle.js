// COCO's run-lengths: "counts" of zeros and ones in turn, column by column, as text with five bits a character.

// Ends of the runs, or null when the text is damaged or does not fill its picture.
export function ends(text, pixels) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const byte = text.charCodeAt(at) - 48;
      if (!(byte >= 0 && byte < 64) || shift > 30) return null;
      value += (byte & 31) * 2 ** shift;
      more = (byte & 32) !== 0;
      shift += 5;
      at += 1;
      if (!more && byte & 16) value -= 2 ** shift;
      if (more && at >= text.length) return null;
    }
    // From the third run on, the difference to the run before the last is written.
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) return null;
    runs.push(value);
  }
  let sum = 0;
  const found = new Uint32Array(runs.length);
  for (let i = 0; i < runs.length; i += 1) {
    sum += runs[i];
    if (sum > pixels) return null;
    found[i] = sum;
  }
  return sum === pixels ? found : null;
}

// Calls visit(first, end) for every run of ones; places count column by column.
export function runs(found, visit) {
  for (let i = 1; i < found.length; i += 2) if (found[i] > found[i - 1]) visit(found[i - 1], found[i]);
}

// Whether a place lies in the mask.
export function inside(found, place) {
  let low = 0, high = found.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (found[middle] > place) high = middle;
    else low = middle + 1;
  }
  return low < found.length && low % 2 === 1;
}
