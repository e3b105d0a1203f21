// The picture of one sound: waveform, spectrogram, scores over time, regions, a cursor through all of them.
import WaveSurfer from './wavesurfer/wavesurfer.esm.js'
import Regions from './wavesurfer/regions.esm.js'
import Timeline from './wavesurfer/timeline.esm.js'
import { address, get } from './api.js'

const WAVE = 56, SPECTROGRAM = 150, LANE = 16, MAX_LANES = 8, MAX_EVENTS = 400
const SHORTEST = 0.05 // seconds of a drawn segment
const NEAR = 0.05 // seconds: a position so close is reached
const PLACED = 'position:absolute;top:0;pointer-events:none;'
const element = (kind, style) => Object.assign(document.createElement(kind), { style })
// Labels of a segment as text; `!dog` is a negative label.
export const NEGATIVE = '!'
export const isNegative = (label) => label.startsWith(NEGATIVE)
export const labelText = (labels) => labels.map((label) => (
  isNegative(label) ? `not ${label.slice(NEGATIVE.length)}` : label)).join('; ')
const probe = document.body.appendChild(element('span', 'display:none'))
const colour = (name) => { // resolved: a canvas knows no variables
  probe.style.color = `var(${name})`
  return getComputedStyle(probe).color
}

export class View {
  // `on`: draw(start, end), pick(kind, index), move(index, start, end), time(seconds), error(text)
  constructor(container, lanes, on) {
    this.on = on
    this.lanes = lanes
    this.regions = Regions.create()
    this.sound = null
    this.busy = false // regions are ours, not drawn by hand
    this.sought = null // seconds that were asked for and not reached yet
    this.surfer = WaveSurfer.create({
      container, height: WAVE, cursorWidth: 2, barWidth: 0, normalize: true, autoScroll: true,
      plugins: [this.regions, Timeline.create({ height: 18, primaryLabelSpacing: 1, style: { fontSize: '11px', color: 'inherit' } })],
    })
    this.image = element('img', `${PLACED}height:100%;display:none;`)
    this.image.alt = ''
    this.canvas = element('canvas', PLACED)
    this.picture = element('div', `position:relative;height:${SPECTROGRAM}px;overflow:hidden;`)
    this.rows = element('div', 'position:relative;overflow:hidden;')
    this.picture.append(this.image)
    this.rows.append(this.canvas)
    this.surfer.getWrapper().append(this.picture, this.rows)
    this.regions.enableDragSelection({ color: 'rgba(90,160,255,.3)' })
    this.regions.on('region-created', (region) => this.drawn(region))
    this.regions.on('region-updated', (region) => {
      if (region.own) on.move(region.own.index, region.start, Math.min(region.end, this.sound.duration))
    })
    this.regions.on('region-clicked', (region) => {
      if (region.own) on.pick(region.own.kind, region.own.index)
    })
    this.surfer.on('timeupdate', (seconds) => on.time(seconds))
    const arrive = () => { if (!this.loading) this.sought = null }
    for (const event of ['play', 'pause', 'interaction']) this.surfer.on(event, arrive)
    this.surfer.getMediaElement().addEventListener('seeked', ({ target }) => {
      if (Math.abs(target.currentTime - this.sought) < NEAR) arrive()
    })
    this.surfer.on('scroll', () => this.later())
    this.surfer.on('redraw', () => this.later())
    this.surfer.on('error', (error) => this.failed(error))
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.paint())
    this.paint()
  }

  paint() {
    const accent = colour('--accent')
    this.surfer.setOptions({ waveColor: colour('--soft'), progressColor: accent, cursorColor: accent })
    this.later()
  }

  // Position in seconds. Of several seeks at once a browser may say the first one's, and a sound may be loading.
  get time() {
    const { paused, seeking } = this.surfer.getMediaElement(), isPlaying = !paused && !seeking
    return isPlaying || this.sought === null ? this.surfer.getCurrentTime() : this.sought
  }

  seek(seconds) {
    this.surfer.setTime(seconds)
    this.sought = seconds
  }

  async show(sound) {
    const isSame = this.sound && this.sound.file === sound.file && this.sound.version === sound.version
    this.sound = sound
    const peaks = [sound.peaks.length ? sound.peaks.map((level) => level / 255) : [0, 0]]
    if (!isSame || this.shownPeaks !== peaks[0].length) {
      this.sought = isSame ? this.time : null
      this.shownPeaks = peaks[0].length
      this.isDecoded = isSame && this.isDecoded
      this.image.style.display = 'none'
      this.loading = sound
      try {
        await this.surfer.load(this.source(), peaks, sound.duration || 1)
      } catch (error) {
        if (error.name === 'AbortError') return
        this.failed(error)
      }
      if (this.sound !== sound) return
      this.loading = null
      if (this.sought) this.seek(this.sought)
      if (!isSame) this.zoom(0)
    }
    this.later()
  }

  source() {
    const query = { file: this.sound.file, version: this.sound.version }
    return address('audio', this.isDecoded ? { ...query, decoded: 1 } : query)
  }

  // What the browser cannot play is decoded by the server.
  failed(error) {
    if (!this.sound || !this.surfer.getMediaElement().error) return
    if (this.isDecoded || !this.sound.native) return this.on.error(`cannot be played (${error.message || error})`)
    this.isDecoded = true
    this.shownPeaks = -1
    this.show(this.sound)
  }

  // Regions of events (of the model) and of labels (which can be moved); `chosen` is {kind, index}.
  mark(events, labels, chosen, draft) {
    this.busy = true
    this.regions.clearRegions()
    const add = (kind, index, part, color, content, isFree) => {
      const isChosen = chosen && chosen.kind === kind && chosen.index === index
      const region = this.regions.addRegion({
        start: part.start, end: part.end, content: this.caption(content), drag: isFree, resize: isFree,
        color: isChosen ? 'rgba(90,160,255,.38)' : color,
      })
      region.own = { kind, index }
      if (!isFree) this.passThrough(region)
    }
    events.slice(0, MAX_EVENTS).forEach((event, index) => add(
      'event', index, { start: event.start_s, end: event.end_s }, 'rgba(255,190,60,.16)', event.label, false))
    labels.forEach((row, index) => {
      if (row.end !== null || row.start > 0) add(
        'label', index, { start: row.start, end: row.end ?? this.sound.duration }, 'rgba(60,190,110,.26)',
        labelText(row.labels), true)
    })
    if (draft) add('draft', 0, draft, 'rgba(90,160,255,.38)', '?', false)
    this.busy = false
  }

  // What cannot be moved lets a segment be drawn over it; its caption can be clicked.
  passThrough(region) {
    const { kind, index } = region.own
    region.element.style.pointerEvents = 'none'
    region.content.style.pointerEvents = 'auto'
    region.content.onclick = (event) => {
      event.stopPropagation()
      this.on.pick(kind, index)
      this.seek(region.start)
    }
  }

  caption(text) {
    const span = element('span', 'font:11px system-ui;color:#fff;background:#000a;padding:0 4px;border-radius:3px;')
    span.textContent = text
    return span
  }

  drawn(region) {
    if (this.busy || region.own) return
    const { start, end } = region
    region.remove()
    if (end - start >= SHORTEST) this.on.draw(start, Math.min(end, this.sound.duration))
  }

  zoom(factor) {
    const duration = this.surfer.getDuration() || 1
    const least = this.surfer.getWidth() / duration
    this.scale = factor ? Math.min(800, Math.max(least, (this.scale || least) * factor)) : least
    this.surfer.zoom(this.scale > least ? this.scale : 0)
    this.later()
  }

  later() {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.draw(), 120)
  }

  // Spectrogram and scores of what is visible.
  async draw() {
    const { sound, surfer } = this
    if (!sound || !sound.duration || this.loading) return
    const wrapper = surfer.getWrapper(), scale = wrapper.offsetWidth / sound.duration
    const left = surfer.getScroll(), width = Math.min(surfer.getWidth(), wrapper.offsetWidth)
    const start = left / scale, end = Math.min(sound.duration, (left + width) / scale)
    if (!(end > start) || !(width > 0)) return
    const part = { file: sound.file, start: start.toFixed(3), end: end.toFixed(3), version: sound.version }
    const image = new Image()
    image.onload = () => {
      if (this.sound !== sound) return
      this.image.style.cssText = `${PLACED}height:100%;left:${left}px;width:${width}px;`
      this.image.src = image.src
      this.lanes.dataset.drawn = sound.file
    }
    image.src = address('picture', part)
    if (!sound.tagged) return this.scores({ times: [], labels: [], scores: [] }, left, width, start, end)
    try {
      const track = await get('track', part)
      if (this.sound === sound) this.scores(track, left, width, start, end)
    } catch (error) {
      if (error.status !== 422) this.on.error(error.message)
    }
  }

  scores(track, left, width, start, end) {
    const count = Math.min(MAX_LANES, track.labels.length), ratio = devicePixelRatio || 1
    const { canvas } = this
    this.rows.style.height = `${count * LANE}px`
    this.lanes.style.top = `${this.rows.offsetTop}px`
    canvas.style.cssText = `${PLACED}left:${left}px;width:${width}px;height:${count * LANE}px;`
    canvas.width = width * ratio
    canvas.height = count * LANE * ratio
    const context = canvas.getContext('2d'), scale = canvas.width / (end - start)
    context.fillStyle = colour('--accent')
    const { times } = track
    const edges = times.map((time, index) => (index ? (time + times[index - 1]) / 2 : 0)).concat(this.sound.duration)
    for (let row = 0; row < count; row += 1) {
      track.scores[row].forEach((score, index) => {
        context.globalAlpha = score
        const x = Math.round((edges[index] - start) * scale), next = Math.round((edges[index + 1] - start) * scale)
        context.fillRect(x, (row * LANE + 1) * ratio, Math.max(1, next - x), (LANE - 2) * ratio)
      })
    }
    this.lanes.replaceChildren(...track.labels.slice(0, count).map((label) => {
      const item = document.createElement('li')
      item.textContent = label
      return item
    }))
  }
}
