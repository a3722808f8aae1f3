// What the drawings on the nodes show, as plain numbers: the schedule's curve and where tiles lie.
// The same as schedule.py and tiles.py of resshift_core; tests/test_web.py compares them.

/** sqrt(eta_t) for t = 1..T between the trained end points (eq. 10). */
export function sqrtEta(steps, p, first, last) {
  if (steps <= 1) return [last]
  const span = Math.log(last / first)
  return Array.from({ length: steps }, (_, i) => first * Math.exp((i / (steps - 1)) ** p * span))
}

/** Length of each of `count` equal tiles along a padded side. */
function lengthOf(padded, count, overlap, multiple) {
  return count === 1 ? padded : Math.ceil((padded + (count - 1) * overlap) / (count * multiple)) * multiple
}

/** Where `count` tiles start along a padded side, and how long they are. All in pixels of the input. */
function layAxis(padded, count, overlap, { unit, tile_multiple }) {
  if (count === 1) return { tile: padded, starts: [0] }
  const tile = lengthOf(padded, count, overlap, tile_multiple)
  const room = Math.floor((padded - tile) / unit)
  return { tile, starts: Array.from({ length: count }, (_, i) => Math.floor((i * room) / (count - 1)) * unit) }
}

/** [length, count] for the lengths that tiles along one side may have, with the least count for each. */
function choices(padded, tile, overlap, multiple) {
  const squares = padded <= tile ? 1 : Math.ceil((padded - overlap) / (tile - overlap))
  const shortest = Math.floor((lengthOf(padded, squares, overlap, multiple) * 3) / 4)
  const counts = new Map()
  for (let count = 1; count <= 2 * squares; count++) {
    const length = lengthOf(padded, count, overlap, multiple)
    if (shortest <= length && length <= Math.floor((tile * 5) / 4) && !counts.has(length)) counts.set(length, count)
  }
  return [...counts]
}

/** {rows, columns} of a padded picture: of the tiles of at most tile * tile pixels those that compute least twice. */
export function layAxes(height, width, tile, overlap, facts) {
  if (Math.max(height, width) <= tile) return { rows: layAxis(height, 1, 0, facts), columns: layAxis(width, 1, 0, facts) }
  const shared = Math.min(Math.ceil(overlap / facts.unit), Math.floor(Math.floor(tile / 2) / facts.unit)) * facts.unit
  let best = null
  for (const [high, down] of choices(height, tile, shared, facts.tile_multiple)) {
    for (const [wide, across] of choices(width, tile, shared, facts.tile_multiple)) {
      const pixels = down * high * across * wide
      if (high * wide > tile * tile) continue
      if (!best || pixels < best.pixels || (pixels === best.pixels && down < best.down)) best = { pixels, down, across }
    }
  }
  return { rows: layAxis(height, best.down, shared, facts), columns: layAxis(width, best.across, shared, facts) }
}

/** [tile, overlap] that a run uses: zeros are the model's own, tiles are rounded up to its multiple. */
export function chooseTile(facts, tile, overlap) {
  const rounded = Math.ceil((tile || facts.tile) / facts.multiple) * facts.multiple
  const wanted = overlap || Math.min(facts.overlap, Math.floor(rounded / 4))
  return [rounded, Math.min(wanted, Math.floor(rounded / 2))]
}

/** How many pixels wrap-around adds on both sides of a length, together. */
export function wrapMargin(length, multiple) {
  const margin = Math.ceil(32 / multiple) * multiple
  return 2 * margin + ((multiple - (length % multiple)) % multiple)
}

/** Tiles of a picture: {rows, columns, bytes}; bytes are what one batch of them needs beside the weights, in fp32. */
export function layTiles(facts, width, height, { tile, overlap, tile_batch, wrap }) {
  const padded = (length, words) => {
    const around = length + (words.includes(wrap) ? wrapMargin(length, facts.multiple) : 0)
    return Math.ceil(around / facts.multiple) * facts.multiple
  }
  const [side, shared] = chooseTile(facts, tile, overlap)
  const { rows, columns } = layAxes(padded(height, ['y', 'both']), padded(width, ['x', 'both']), side, shared, facts)
  const together = Math.min(tile_batch || 1, rows.starts.length * columns.starts.length)
  return { rows, columns, bytes: facts.bytes_per_pixel * rows.tile * columns.tile * together }
}

/** 1234567 -> "1.2 MB" */
export function readable(bytes) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  let i = 0
  for (; bytes >= 999.5 && i < units.length - 1; i++) bytes /= 1000
  return `${bytes < 9.95 && i ? bytes.toFixed(1) : Math.round(bytes)} ${units[i]}`
}
