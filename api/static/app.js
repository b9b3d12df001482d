// The plain page: the WebSocket document's own JavaScript, run on a job of this gateway.

const api = `${location.origin}/api/v1`;
const sockets = `${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/api/v1`;
const finished = ['succeeded', 'failed', 'stopped'];
const element = (id) => document.getElementById(id);

const token = takeToken();
let following = null; // { jobId, end() } of the job that is shown

// --- the document's code: connect, and again when the connection is lost

const maxReconnectAttempts = 5;

function connect(jobId, show) {
  let reconnectAttempts = 0;
  let ws = null;
  let wanted = true;

  function open() {
    const url = `${sockets}/training-jobs/${jobId}/stream`;
    ws = token ? new WebSocket(url, ['Bearer', token]) : new WebSocket(url);

    ws.onopen = () => {
      show.connection('connected');
    };

    ws.onmessage = (event) => {
      reconnectAttempts = 0;
      const data = JSON.parse(event.data);
      show.message(data);
    };

    ws.onerror = () => {
      show.connection('error');
    };

    ws.onclose = (event) => {
      show.connection(`closed: ${event.code} ${event.reason}`);
      // 1000: the job has ended. 1008: not found, or not for this token. Neither gets better by trying again.
      if (!wanted || event.code === 1000 || event.code === 1008) return;
      if (reconnectAttempts < maxReconnectAttempts) {
        reconnectAttempts++;
        show.connection(`reconnecting, try ${reconnectAttempts} of ${maxReconnectAttempts}`);
        setTimeout(() => wanted && open(), 2000);
      }
    };
  }

  open();
  return () => {
    wanted = false;
    ws.close();
  };
}

// --- the document's polling alternative

function pollTrainingStatus(jobId, show) {
  async function poll() {
    const data = await call(`/training-jobs/${jobId}`);
    show.message({ type: 'progress', ...data });

    if (finished.includes(data.status)) {
      clearInterval(interval);
      show.connection('polling ended');
    }
  }
  const tryPoll = () => poll().catch((error) => show.connection(error.message));
  const interval = setInterval(tryPoll, 3000); // Poll every 3 seconds
  show.connection('polling every 3 s');
  tryPoll();
  return () => clearInterval(interval);
}

// --- the page

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (given) {
    sessionStorage.setItem('token', given);
    // Out of the address, before anybody copies it or it stays in the history.
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem('token');
}

async function call(path, options = {}) {
  const headers = { ...(options.body ? { 'Content-Type': 'application/json' } : {}) };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(api + path, { ...options, headers });
  const data = await response.json();
  if (!response.ok) throw new Error(data.detail || data.title || `status ${response.status}`);
  return data;
}

function notice(text, isBad = false) {
  element('notice').textContent = text;
  element('notice').classList.toggle('bad', isBad);
}

function follow(jobId) {
  if (following) following.end();
  element('job-title').textContent = `Job ${jobId}`;
  element('messages').replaceChildren();
  const by = element('choose').elements.by.value;
  const end = by === 'polling' ? pollTrainingStatus(jobId, painter()) : connect(jobId, painter());
  following = { jobId, end };
  element('choose').elements.job.value = jobId;
}

function painter() {
  return { connection: (text) => (element('connection').textContent = text), message: paint };
}

function paint(data) {
  element('status').textContent = data.error_message ? `${data.status}: ${data.error_message}` : data.status;
  element('epoch').textContent = `${data.current_epoch} of ${data.total_epochs}`;
  element('progress').value = data.progress;
  element('percent').textContent = `${Math.round(data.progress * 100)}%`;
  if (data.current_loss !== undefined) element('loss').textContent = data.current_loss ?? '-';
  element('stop').disabled = finished.includes(data.status);
  addMessage(data);
}

const lines = {
  progress: (data) => `${data.status} ${data.current_epoch}/${data.total_epochs} ${numbers(data.metrics)}`,
  log: (data) => `${data.level} ${data.message}`,
  complete: (data) => `complete: model ${data.model_id ?? '-'} ${numbers(data.final_metrics)}`,
  error: (data) => `error: ${data.error_message}`,
};

function addMessage(data) {
  const list = element('messages');
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = document.createElement('li');
  item.className = data.type;
  item.textContent = `${data.timestamp}  ${lines[data.type](data)}`;
  list.append(item);
  while (list.children.length > 1000) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function numbers(metrics) {
  return Object.entries(metrics || {}).map(([name, value]) => `${name}=${value === null ? '-' : +value.toPrecision(4)}`).join(' ');
}

async function listJobs() {
  try {
    const { items } = await call('/training-jobs?limit=15');
    element('no-jobs').hidden = items.length > 0;
    // The focused button must survive the next look.
    const focused = document.activeElement?.dataset?.job;
    element('jobs').replaceChildren(...items.map(row));
    if (focused) document.querySelector(`button[data-job="${focused}"]`)?.focus();
    if (!following && items.length > 0) follow(items[0].job_id);
    notice('');
  } catch (error) {
    notice(error.message, true);
  }
}

function row(job) {
  const line = document.createElement('tr');
  const button = document.createElement('button');
  button.textContent = job.job_id;
  button.dataset.job = job.job_id;
  button.setAttribute('aria-label', `Follow job ${job.job_id}`);
  button.onclick = () => follow(job.job_id);
  const texts = [job.name, job.status, `${Math.round(job.progress * 100)}%`];
  for (const content of [button, ...texts]) {
    const cell = document.createElement('td');
    cell.append(content);
    line.append(cell);
  }
  return line;
}

element('choose').onsubmit = async (event) => {
  event.preventDefault();
  const chosen = event.target.elements.job.value;
  try {
    const jobId = chosen || (await call('/training-jobs?limit=1')).items[0]?.job_id;
    if (jobId) follow(Number(jobId));
  } catch (error) {
    notice(error.message, true);
  }
};

element('submit').onsubmit = async (event) => {
  event.preventDefault();
  const { epochs, lr } = event.target.elements;
  const job = {
    name: 'digits',
    recipe: 'image-classifier',
    hyperparameters: { dataset: 'digits', lr: Number(lr.value) },
    total_epochs: Number(epochs.value),
    tags: ['demo'],
  };
  try {
    const { job_id: jobId } = await call('/training-jobs', { method: 'POST', body: JSON.stringify(job) });
    follow(jobId);
    listJobs();
  } catch (error) {
    notice(error.message, true);
  }
};

element('stop').onclick = () =>
  call(`/training-jobs/${following.jobId}/stop`, { method: 'POST' }).catch((error) => notice(error.message, true));

listJobs();
setInterval(listJobs, 3000);
