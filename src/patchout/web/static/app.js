// The page: list, keys, labels, training. `patchout web` serves it; nothing is loaded from elsewhere.
import { address, get, post } from './api.js'
import { NEGATIVE, View, isNegative, labelText } from './view.js'

const PAGE = 50, BACKGROUND = 'background'
const $ = (id) => document.getElementById(id)
const seconds = (value) => `${value.toFixed(value < 100 ? 2 : 1)} s`
const page = { rows: [], first: 0, total: 0, order: '', row: -1, like: null }
let state = null, sound = null, target = null, wanted = null, history = []

const view = new View($('wave'), $('lanes'), {
  draw: (start, end) => { choose({ kind: 'draft', start, end }); $('label').focus() },
  pick: (kind, index) => (kind === 'draft' ? null : choose({ kind, index })),
  move: (index, start, end) => { const row = sound.labels[index]; change(row, { ...row, start, end }) },
  time: (now) => { $('time').textContent = sound ? `${now.toFixed(1)} / ${seconds(sound.duration)}` : '' },
  error: say,
})

function say(text) {
  $('toast').textContent = text
  clearTimeout(say.timer)
  say.timer = setTimeout(() => { $('toast').textContent = '' }, 6000)
}

const guarded = (action) => async (...values) => {
  try { return await action(...values) } catch (error) { say(error.message) }
}

// ---- the list

const load = guarded(async (first, { fresh = false } = {}) => {
  const query = { sort: $('sort').value, search: $('search').value, first, count: PAGE, order: fresh ? '' : page.order }
  const answer = page.like ? await get('similar', page.like) : await get('sounds', query)
  Object.assign(page, { rows: answer.rows, first: answer.first, total: answer.total, order: answer.order || '' })
  list()
})

function list() {
  $('sounds').replaceChildren(...page.rows.map((row, index) => {
    const item = document.createElement('li')
    Object.assign(item, { id: `row-${index}`, role: 'option', onclick: () => open(index) })
    item.setAttribute('role', 'option')
    item.setAttribute('aria-selected', index === page.row)
    const told = row.labels.length ? labelText(row.labels) : row.error || row.label || 'not tagged yet'
    const kind = row.labels.length ? 'by-hand' : row.error ? 'bad' : 'soft'
    const number = row.similarity ?? row.score
    item.append(span('file', `\u200e${row.file}`), span('soft', row.start ? seconds(row.start) : row.duration ? seconds(row.duration) : ''),
      span(kind, told), span('soft', number === undefined || row.error || row.labels.length ? '' : number.toFixed(3)))
    return item
  }))
  $('sounds').setAttribute('aria-activedescendant', page.row >= 0 ? `row-${page.row}` : '')
  const last = page.first + page.rows.length
  $('place').textContent = page.total ? `${page.first + 1}\u2013${last} of ${page.total}` : 'no sounds'
  $('before').disabled = page.first === 0
  $('after').disabled = last >= page.total
  $('like').hidden = !page.like
  if (page.like) $('like').textContent = `like ${page.like.file} (Esc: back)`
}

function span(kind, text) {
  return Object.assign(document.createElement('span'), { className: kind, textContent: text })
}

async function step(by) {
  let row = page.row + by
  if (row < 0 && page.first > 0) { await load(Math.max(0, page.first - PAGE)); row = page.rows.length - 1 }
  if (row >= page.rows.length && page.first + page.rows.length < page.total) { await load(page.first + PAGE); row = 0 }
  if (page.rows[row]) await open(row)
}

const open = guarded(async (row) => {
  page.row = row
  list()
  $(`row-${row}`).scrollIntoView({ block: 'nearest' })
  const { file, start } = page.rows[row]
  wanted = file
  await refresh(file)
  if (start && sound.file === file) { view.seek(start); view.surfer.setScrollTime(Math.max(0, start - 2)) }
})

// ---- the sound

async function refresh(file = sound.file) {
  const answer = await get('sound', { file })
  if (wanted !== file) return
  const isNew = !sound || sound.file !== file
  sound = answer
  if (isNew) { target = null; history = [] }
  $('name').textContent = file
  remark()
  choose(isNew ? { kind: 'whole' } : target)
  if (!sound.tagged && !sound.error) setTimeout(() => wanted === file && refresh(file).catch(() => {}), 700)
  await view.show(sound)
  choose(target)
}

function remark() {
  const isNow = state?.current === sound.file
  const waits = isNow ? `is being tagged: ${state.seconds} of ${seconds(sound.duration)}` : 'waits to be tagged'
  $('remark').textContent = [sound.error, sound.warning, sound.tagged || sound.error ? '' : waits].filter(Boolean).join('; ')
}

// What a label goes to: the whole sound, an event, a labelled segment, or a new one.
function choose(next) {
  const rows = sound.labels
  const whole = rows.findIndex((row) => row.start === 0 && row.end === null)
  if (next.kind === 'label' && !rows[next.index]) next = { kind: 'whole' }
  if (next.kind === 'event' && !sound.events[next.index]) next = { kind: 'whole' }
  target = { kind: next.kind, index: next.index, start: 0, end: null, before: null }
  let guesses = sound.tags.map((tag) => tag.label)
  if (next.kind === 'whole') target.before = rows[whole] || null
  if (next.kind === 'label') Object.assign(target, { before: rows[next.index], start: rows[next.index].start, end: rows[next.index].end })
  if (next.kind === 'draft') Object.assign(target, { start: next.start, end: next.end })
  if (next.kind === 'event') {
    const event = sound.events[next.index]
    Object.assign(target, { start: event.start_s, end: event.end_s })
    guesses = [event.label]
    target.before = rows.find((row) => row.start === event.start_s && row.end === event.end_s) || null
  }
  const classes = (target.before?.labels || []).filter((label) => !isNegative(label))
  const guess = guesses.find((label) => !rejected(target).has(label))
  target.guess = classes.length ? classes : guess === undefined ? [] : [guess]
  const part = target.end === null ? 'the whole sound' : `${seconds(target.start)} to ${seconds(target.end)}`
  $('target').textContent = `label of ${part}${target.before ? `: ${labelText(target.before.labels)} (${target.before.by})` : ''}`
  $('accept').disabled = $('reject').disabled = !target.guess.length
  $('delete').disabled = !target.before
  view.mark(sound.events, rows, target, target.kind === 'draft' ? target : null)
  facts()
}

// Classes that a part of the sound was said not to be of, itself or what it lies in: they are not suggested again.
function rejected({ start, end }) {
  const around = sound.labels.filter((row) => row.start <= start && (row.end === null || (end !== null && row.end >= end)))
  return new Set(around.flatMap((row) => row.labels).filter(isNegative).map((label) => label.slice(NEGATIVE.length)))
}

function facts() {
  const no = rejected(target)
  const entry = (text, score, onclick, isPressed, kind = '') => {
    const item = document.createElement('li'), button = document.createElement('button')
    button.append(span(kind, text))
    button.onclick = onclick
    button.setAttribute('aria-pressed', isPressed)
    item.append(button, span('soft', score))
    return item
  }
  $('tags').replaceChildren(...sound.tags.map((tag) => entry(
    tag.label + (no.has(tag.label) ? ' (rejected)' : tag.passed === false ? ' (below its threshold)' : ''), tag.score.toFixed(3),
    () => keep([tag.label]), false)))
  $('events').replaceChildren(...sound.events.map((event, index) => entry(
    `${event.label}, ${seconds(event.start_s)} to ${seconds(event.end_s)}`, event.score.toFixed(2),
    () => { choose({ kind: 'event', index }); view.seek(event.start_s) }, target.kind === 'event' && target.index === index)))
  $('labels').replaceChildren(...sound.labels.map((row, index) => {
    const isWhole = row.start === 0 && row.end === null
    const part = isWhole ? 'whole sound' : `${seconds(row.start)} to ${row.end === null ? 'the end' : seconds(row.end)}`
    return entry(`${labelText(row.labels)}, ${part}`, row.by, () => choose(isWhole ? { kind: 'whole' } : { kind: 'label', index }),
      isWhole ? target.kind === 'whole' : target.kind === 'label' && target.index === index, 'by-hand')
  }))
}

// ---- labels: each change is kept at once

async function change(before, after, { isUndo = false } = {}) {
  const { file } = sound
  const plain = (row) => row && { start: row.start, end: row.end, labels: row.labels }
  try {
    const answer = await post('label', { file, before: plain(before), after: plain(after) })
    if (!isUndo) history.push([before, after])
    const row = page.rows.find((entry) => entry.file === file)
    if (row) row.labels = answer.labels.flatMap((part) => part.labels)
    if (sound.file === file) sound.labels = answer.labels
    const index = after ? sound.labels.findIndex((entry) => entry.start === after.start && entry.end === after.end) : -1
    choose(after && (after.end !== null || after.start > 0) && index >= 0 ? { kind: 'label', index } : { kind: 'whole' })
    list()
    return true
  } catch (error) {
    say(error.message)
    await refresh(file).catch(() => {})
    return false
  }
}

async function keep(labels) {
  if (!sound || !labels.length) return
  const at = target
  const isKept = await change(at.before, { start: round(at.start), end: at.end === null ? null : round(at.end), labels })
  if (!isKept) return
  $('label').value = ''
  $('label').blur()
  say(`${labelText(labels)}: kept`)
  if (at.kind === 'whole') await step(1)
}

const round = (value) => Math.round(value * 1000) / 1000
const typed = () => $('label').value.split(';').map((name) => name.trim()).filter(Boolean)
const accept = () => target?.guess.length && keep(target.guess)
const reject = () => {
  if (!target?.guess.length) return say('nothing is suggested that could be rejected; b: background')
  keep([...(target.before?.labels || []).filter(isNegative), ...target.guess.map((label) => NEGATIVE + label)])
}
const silence = () => keep([BACKGROUND])
const remove = () => target?.before && change(target.before, null)

async function undo() {
  const last = history.pop()
  if (last) await change(last[1], last[0], { isUndo: true })
}

function edge(side) {
  const now = round(view.time)
  const start = target.end === null ? 0 : target.start, end = target.end ?? sound.duration
  const next = side === 'start' ? { start: now, end: end > now ? end : sound.duration } : { start: start < now ? start : 0, end: now }
  if (next.end > next.start) choose({ kind: 'draft', ...next })
}

function nextPart() {
  const parts = [...sound.events.map((_, index) => ({ kind: 'event', index })), ...sound.labels.map((_, index) => ({ kind: 'label', index }))]
  if (!parts.length) return say('no events and no labelled segments here')
  const place = parts.findIndex((part) => part.kind === target.kind && part.index === target.index)
  choose(parts[(place + 1) % parts.length])
  view.seek(target.start)
}

const similar = guarded(async () => {
  const now = view.time, isWhole = target.end === null
  const part = isWhole && sound.duration > 30 ? { start: now, end: Math.min(now + 5, sound.duration) } : target
  page.like = { file: sound.file, start: part.start, end: part.end ?? sound.duration }
  page.row = -1
  await load(0)
})

// ---- training

const learn = guarded(async (whole) => { showLearning(await post('learn', { whole })); setTimeout(poll, 300) })

function showLearning(learning) {
  const isRunning = learning.status === 'running'
  $('learn-head').disabled = $('learn-whole').disabled = isRunning
  $('learn-stop').hidden = $('learn-progress').hidden = !isRunning
  $('learn-progress').value = learning.share
  const scores = Object.entries(learning.scores).slice(0, 4).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(', ')
  $('learn-facts').textContent = `${state.labelled} sounds are labelled. ` + {
    idle: 'The last layer takes seconds, the whole model minutes to hours.', running: 'Learning ...',
    done: `Done${scores && `, on clips held out: ${scores}`}.`, failed: 'It has failed:',
  }[learning.status]
  $('learn-lines').textContent = learning.status === 'failed' || isRunning ? learning.lines.join('\n') : ''
  $('learn-command').textContent = learning.command
  if (!learning.report) $('report').hidden = true
  else if ($('report').dataset.of !== learning.report) showReport(learning.report)
}

const showReport = guarded(async (file) => {
  const text = Object.assign(document.createElement('pre'), { tabIndex: 0 })
  text.setAttribute('role', 'region')
  text.setAttribute('aria-label', 'report')
  text.textContent = await (await fetch(address('report', { file }))).text()
  const pictures = ['confusions.png', 'classes.png'].map((name) => Object.assign(document.createElement('img'), {
    src: address('report', { file: file.replace('report.md', name) }), alt: name, onerror() { this.remove() },
  }))
  $('report').replaceChildren(text, ...pictures)
  $('report').dataset.of = file
  $('report').hidden = false
})

// ---- state of the server

async function poll() {
  clearTimeout(poll.timer)
  let wait = 5000
  try {
    const before = state
    state = await get('state')
    const isBusy = state.tagged < state.total || state.learning.status === 'running' || !state.classes.length
    wait = isBusy ? 1000 : 5000
    const failed = state.failed ? `, ${state.failed} cannot be read` : ''
    $('facts').textContent = `${state.folder}: ${state.tagged} of ${state.total} sounds tagged${failed}, ${state.labelled} labelled; ${state.model}`
    $('facts').title = $('facts').textContent
    $('progress').hidden = state.tagged === state.total
    $('progress').value = state.total ? state.tagged / state.total : 1
    $('problems').hidden = !state.problems.length
    $('problems').textContent = state.problems.join('\n')
    const names = [...new Set([...state.names, ...state.classes, BACKGROUND])]
    if ($('names').childElementCount !== names.length) $('names').replaceChildren(...names.map((name) => new Option('', name)))
    showLearning(state.learning)
    if (sound) remark()
    document.body.dataset.generation = state.generation
    if (before && before.generation !== state.generation) { await load(0, { fresh: true }); if (sound) await refresh() }
    else if (before && before.tagged !== state.tagged && !page.like) await load(page.first, { fresh: before.total !== state.total })
  } catch (error) {
    $('problems').hidden = false
    $('problems').textContent = error.message
  }
  poll.timer = setTimeout(poll, wait)
}

// ---- keys and buttons

const orders = () => {
  $('sort').selectedIndex = ($('sort').selectedIndex + 1) % $('sort').length
  page.row = -1
  load(0, { fresh: true })
}
const back = () => {
  document.activeElement.blur()
  if (page.like) { page.like = null; page.row = -1; load(0) } else if (sound) choose({ kind: 'whole' })
}
const skip = (by) => sound && view.seek(Math.max(0, Math.min(sound.duration, view.time + by)))
const play = () => sound && view.surfer.playPause()
const ofSound = (action) => () => (sound ? action() : say('choose a sound first: j'))
const keys = {
  j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1), ' ': play,
  ArrowLeft: (event) => skip(event.shiftKey ? -5 : -0.5), ArrowRight: (event) => skip(event.shiftKey ? 5 : 0.5),
  a: ofSound(accept), x: ofSound(reject), b: ofSound(silence), d: ofSound(remove), Delete: ofSound(remove), u: ofSound(undo),
  l: () => $('label').focus(), Enter: () => $('label').focus(), '/': () => $('search').focus(), s: orders,
  '[': ofSound(() => edge('start')), ']': ofSound(() => edge('end')), e: ofSound(nextPart), m: ofSound(similar),
  '+': () => view.zoom(1.5), '=': () => view.zoom(1.5), '-': () => view.zoom(1 / 1.5),
  g: () => $('learn').showModal(), '?': () => $('help').showModal(), Escape: back,
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return
  const isField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
  const isPressing = event.target.tagName === 'BUTTON' && (event.key === ' ' || event.key === 'Enter')
  if (isPressing || (isField && event.key !== 'Escape')) return
  const action = keys[event.key]
  if (!action) return
  event.preventDefault()
  action(event)
})

$('find').addEventListener('submit', (event) => { event.preventDefault(); $('search').blur() })
$('search').addEventListener('input', () => {
  clearTimeout(load.timer)
  load.timer = setTimeout(() => { page.row = -1; page.like = null; load(0, { fresh: true }) }, 200)
})
$('sort').addEventListener('change', () => { page.row = -1; page.like = null; load(0, { fresh: true }); $('sort').blur() })
$('label-form').addEventListener('submit', (event) => { event.preventDefault(); keep(typed()) })
const clicks = {
  before: () => load(Math.max(0, page.first - PAGE)), after: () => load(page.first + PAGE), play, more: keys.m,
  accept: keys.a, reject: keys.x, background: keys.b, delete: keys.d, 'zoom-in': keys['+'], 'zoom-out': keys['-'],
  'open-learn': keys.g, 'open-help': keys['?'], 'learn-head': () => learn(false), 'learn-whole': () => learn(true),
  'learn-stop': guarded(() => post('stop', {})),
}
for (const [id, action] of Object.entries(clicks)) $(id).addEventListener('click', action)

await load(0)
document.body.dataset.ready = 'yes'
poll()
