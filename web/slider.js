// Two pictures on top of each other, and a bar that uncovers one of them. Mouse, touch and arrow keys.

const STYLE = {
  frame: 'position:relative;width:100%;height:100%;overflow:hidden;cursor:ew-resize;touch-action:none;user-select:none;border-radius:4px;background:var(--comfy-input-bg,#222)',
  image: 'position:absolute;inset:0;width:100%;height:100%;object-fit:contain;pointer-events:none',
  bar: 'position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 3px #000;pointer-events:none',
  label: 'position:absolute;bottom:4px;padding:1px 5px;border-radius:3px;background:#000a;color:#fff;font:10px sans-serif;pointer-events:none',
}

const STEPS = { ArrowLeft: -0.05, ArrowDown: -0.05, PageDown: -0.2, ArrowRight: 0.05, ArrowUp: 0.05, PageUp: 0.2, Home: -1, End: 1 }

const child = (name, style) => {
  const made = document.createElement(name)
  made.style.cssText = style
  return made
}

export class Slider {
  constructor(words) {
    this.element = child('div', STYLE.frame)
    this.element.className = 'resshift-slider'
    Object.assign(this.element, { tabIndex: 0, role: 'slider', ariaLabel: `${words.before} / ${words.after}` })
    this.after = child('img', STYLE.image)
    this.before = child('img', STYLE.image)
    this.bar = child('div', STYLE.bar)
    const [left, right] = [child('span', `${STYLE.label};left:4px`), child('span', `${STYLE.label};right:4px`)]
    left.textContent = words.before
    right.textContent = words.after
    for (const image of [this.before, this.after]) {
      image.draggable = false
      image.onerror = () => {
        this.hide()
        this.onLost?.()
      }
    }
    this.element.append(this.after, this.before, this.bar, left, right)
    for (const kind of ['pointerdown', 'pointermove']) this.element.addEventListener(kind, (event) => this.drag(event))
    for (const kind of ['pointerup', 'pointercancel', 'lostpointercapture']) this.element.addEventListener(kind, () => (this.dragged = false))
    this.element.addEventListener('keydown', (event) => this.press(event))
    this.move(0.5)
    this.hide()
  }

  show(before, after) {
    this.before.src = before
    this.after.src = after
    this.element.hidden = false
  }

  /** Without pictures there is nothing to see, whatever room the page gives it. */
  hide() {
    this.element.hidden = true
  }

  move(share) {
    this.share = Math.min(1, Math.max(0, share))
    this.before.style.clipPath = `inset(0 ${100 - 100 * this.share}% 0 0)`
    this.bar.style.left = `${100 * this.share}%`
    this.element.ariaValueNow = String(Math.round(100 * this.share))
  }

  drag(event) {
    if (event.type === 'pointerdown') this.dragged = event.button === 0
    if (!this.dragged || !(event.buttons & 1)) return // what was pressed elsewhere, text that is being selected, is not ours
    event.stopPropagation() // or the node would be dragged
    this.element.setPointerCapture?.(event.pointerId)
    const box = this.element.getBoundingClientRect()
    this.move((event.clientX - box.left) / box.width)
  }

  press(event) {
    const step = STEPS[event.key]
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return // the browser's shortcuts
    event.stopPropagation()
    event.preventDefault()
    this.move(this.share + step)
  }
}
