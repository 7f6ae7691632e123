// Where the page's data comes from: the file itself, or the server of `topd watch`.

const NO_NUMBER = 65535;
const THOUSANDTHS = 1000;
const TYPES = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array,
  i1: Int8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array,
};

export const isLive = document.body.dataset.live === "yes";

const cache = new Map();

export function embeddedValues() {
  return JSON.parse(document.getElementById("values").textContent);
}

// Columns of a block by name, such as list/12; null where the run has no such block.
export function block(name) {
  if (!cache.has(name)) cache.set(name, read(name));
  return cache.get(name);
}

async function read(name) {
  const bytes = isLive ? await fetched(name) : embedded(name);
  return bytes === null ? null : columns(await unpacked(bytes));
}

function embedded(name) {
  const element = document.getElementById(`block:${name}`);
  if (element === null) return null;
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function fetched(name) {
  const answer = await fetch(`blocks/${name}`);
  if (!answer.ok) {
    cache.delete(name); // a step that is not recorded yet may come
    return null;
  }
  return new Uint8Array(await answer.arrayBuffer());
}

async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function columns(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const found = {};
  for (const [name, column] of Object.entries(header)) {
    found[name] = Array.isArray(column)
      ? column
      : new TYPES[column.type](buffer, 4 + length + column.offset, column.length);
  }
  if (found.token_ids) {
    found.spelling = new Map();
    found.token_ids.forEach((id, place) => found.spelling.set(id, found.token_texts[place]));
  }
  return found;
}

// Where each list of a column begins, and behind the last its end.
export function starts(lengths) {
  const begins = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i += 1) begins[i + 1] = begins[i] + lengths[i];
  return begins;
}

export function ofThousandths(value) {
  return value === undefined || value === NO_NUMBER ? NaN : value / THOUSANDTHS;
}

export function spell(columnsOfBlock, ids) {
  return Array.from(ids, (id) => columnsOfBlock.spelling.get(id) ?? `[${id}] `);
}
