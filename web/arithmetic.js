// What the drawings on the nodes show, as plain numbers: the schedule's curve and where tiles lie.
// The same as schedule.py, tiles.py, arguments.py and wrap.py of resshift_core; tests/test_web.py compares them.

/** sqrt(eta_t) for t = 1..T between the trained end points (eq. 10). */
export function sqrtEta(steps, p, first, last) {
  if (steps <= 1) return [last]
  const span = Math.log(last / first)
  return Array.from({ length: steps }, (_, i) => first * Math.exp((i / (steps - 1)) ** p * span))
}

/** Where tiles start along one side, and how long they are. All in pixels of the input. */
export function layAxis(length, tile, overlap, { padding, smallest, tile_multiple, unit }) {
  const padded = Math.ceil(Math.max(length, smallest) / padding) * padding
  if (padded <= tile) return { tile: padded, starts: [0] }
  const shared = Math.min(Math.ceil(overlap / unit), Math.floor(Math.floor(tile / 2) / unit)) * unit
  const count = Math.ceil((padded - shared) / (tile - shared))
  const side = Math.ceil((padded + (count - 1) * shared) / (count * tile_multiple)) * tile_multiple
  const room = Math.floor((padded - side) / unit)
  return { tile: side, starts: Array.from({ length: count }, (_, i) => Math.floor((i * room) / (count - 1)) * unit) }
}

/** [tile, overlap] that a run uses: zeros are the model's own, tiles are rounded up to its multiple. */
export function chooseTile(facts, tile, overlap) {
  const rounded = Math.ceil((tile || facts.tile) / facts.multiple) * facts.multiple
  return [rounded, Math.min(overlap || facts.overlap, Math.floor(rounded / 2))]
}

/** [before, after]: pixels that wrap-around adds on both sides of a length. */
export function wrapMargins(length, multiple) {
  const margin = Math.ceil(32 / multiple) * multiple
  return [margin, margin + ((multiple - (length % multiple)) % multiple)]
}

/**
 * Tiles of a picture: {rows, columns, left, top, bytes}; the picture begins at left, top of what is tiled, and bytes are what
 * one batch of tiles needs beside the weights, in fp32.
 */
export function layTiles(facts, width, height, { tile, overlap, tile_batch, wrap }) {
  const margins = (length, words) => (words.includes(wrap) ? wrapMargins(length, facts.multiple) : [0, 0])
  const [[top, below], [left, right]] = [margins(height, ['y', 'both']), margins(width, ['x', 'both'])]
  const [side, shared] = chooseTile(facts, tile, overlap)
  const rows = layAxis(top + height + below, side, shared, facts)
  const columns = layAxis(left + width + right, side, shared, facts)
  const together = Math.min(tile_batch || 1, rows.starts.length * columns.starts.length)
  return { rows, columns, left, top, bytes: facts.bytes_per_pixel * rows.tile * columns.tile * together }
}

/** 1234567 -> "1.2 MB", or as the language (a tag such as "fr") writes it: "1,2 Mo". */
export function readable(bytes, language) {
  const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte']
  let i = 0
  for (; bytes >= 999.5 && i < units.length - 1; i++) bytes /= 1000
  const digits = bytes < 9.95 && i ? 1 : 0
  const how = { style: 'unit', unit: units[i], minimumFractionDigits: digits, maximumFractionDigits: digits }
  return new Intl.NumberFormat(language, how).format(bytes)
}
