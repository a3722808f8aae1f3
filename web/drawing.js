// The SVG pictures on the nodes. Colours are those of ComfyUI's theme.

const SVG = 'http://www.w3.org/2000/svg'
export const COLOURS = {
  text: 'var(--input-text, #ddd)',
  quiet: 'var(--descrip-text, #999)',
  line: 'var(--border-color, #4e4e4e)',
  paper: 'var(--comfy-input-bg, #222)',
  chosen: 'var(--p-primary-400, #60a5fa)',
  warning: 'var(--p-orange-400, #fb923c)',
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.append(...children)
  return made
}

const text = (x, y, words, attributes = {}) =>
  element('text', { x, y, fill: COLOURS.quiet, 'font-size': 10, 'font-family': 'sans-serif', ...attributes }, words)

/** Points of a curve in a box: t = 1..T left to right, 0..1 bottom to top. One step is drawn at the right end. */
function points(values, { left, top, width, height }) {
  const last = values.length - 1
  return values.map((value, i) => [left + (last ? i / last : 1) * width, top + (1 - value) * height])
}

const path = (list) => list.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('')

/**
 * sqrt(eta_t) of the chosen steps and p (blue, dotted at the steps) over the trained curve (grey), and below it, as an area,
 * the noise: kappa sqrt(eta_t) in units of the trained kappa.
 */
export function drawCurve(svg, { trained, chosen, kappaRatio, words }) {
  const [width, height] = [260, 96]
  const box = { left: 8, top: 20, width: width - 16, height: height - 34 }
  const colour = kappaRatio < 0.5 || kappaRatio > 1.5 ? COLOURS.warning : COLOURS.chosen
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
  const old = points(trained, box)
  const now = points(chosen, box)
  const noise = points(chosen.map((value) => Math.min(1, value * kappaRatio)), box)
  const floor = box.top + box.height
  const area = `${path(noise)}L${noise.at(-1)[0]} ${floor}L${noise[0][0]} ${floor}Z`
  const shown = [
    element('path', { d: `M${box.left} ${floor}h${box.width}`, stroke: COLOURS.line }),
    element('path', { d: area, fill: colour, 'fill-opacity': 0.18 }),
    element('path', { d: path(old), fill: 'none', stroke: COLOURS.quiet, 'stroke-width': 4, 'stroke-opacity': 0.55 }),
    element('path', { d: path(now), fill: 'none', stroke: colour, 'stroke-width': 1.5 }),
    ...(now.length <= 60 ? now.map(([cx, cy]) => element('circle', { cx, cy, r: 2.4, fill: colour })) : []),
    text(box.left, 13, '√η', { fill: COLOURS.text, 'font-size': 11 }),
    text(width - 8, 13, words.settings, { 'text-anchor': 'end', fill: COLOURS.text }),
    ...(chosen.length > 1 ? [text(box.left, height - 3, 't = 1')] : []),
    text(width / 2, height - 3, words.trained, { 'text-anchor': 'middle' }),
    text(width - 8, height - 3, `t = ${chosen.length}`, { 'text-anchor': 'end' }),
  ]
  svg.replaceChildren(...shown)
}

/** The picture with its tiles. `layout` is layTiles' answer; wrapped sides are dashed. */
export function drawTiles(svg, { width, height, layout, wrap, words }) {
  const [full, most] = [260, 110]
  svg.setAttribute('viewBox', `0 0 ${full} ${most + 34}`)
  const across = Math.max(width, layout.columns.starts.at(-1) + layout.columns.tile)
  const down = Math.max(height, layout.rows.starts.at(-1) + layout.rows.tile)
  const scale = Math.min((full - 16) / across, (most - 4) / down)
  const [left, top] = [(full - across * scale) / 2, 2]
  const box = (x, y, w, h, more) =>
    element('rect', { x: left + x * scale, y: top + y * scale, width: w * scale, height: h * scale, ...more })
  const tiles = []
  if (layout.rows.starts.length * layout.columns.starts.length <= 1500) {
    for (const y of layout.rows.starts) {
      for (const x of layout.columns.starts) {
        tiles.push(box(x, y, layout.columns.tile, layout.rows.tile, { fill: COLOURS.chosen, 'fill-opacity': 0.14, stroke: COLOURS.chosen, 'stroke-width': 0.6 }))
      }
    }
  }
  const dashes = wrap === 'none' ? {} : { 'stroke-dasharray': '4 3' }
  svg.replaceChildren(
    ...tiles,
    box(layout.left, layout.top, width, height, { fill: 'none', stroke: COLOURS.text, 'stroke-width': 1, ...dashes }),
    text(full / 2, most + 16, words.count, { 'text-anchor': 'middle', fill: COLOURS.text, 'font-size': 11 }),
    text(full / 2, most + 29, words.memory, { 'text-anchor': 'middle' }),
  )
}
