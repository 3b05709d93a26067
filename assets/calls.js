// Gradio's client reads the answers to all of a page's calls from one stream, which the server ends with a word of
// farewell once nothing is left to answer; the client then opens another for its next call. Farewells, calls and
// answers come on several connections and can overtake each other, whereupon the client waits on a stream that has
// ended, or leaves one and reads another: the server then gives answers to the one that nobody reads.
//
// Here the client has one stream that never ends. Behind it the server's are read one after the other, for as long as
// a call is unanswered. When one breaks, all who wait are told.
//
// It stands in the page itself, for the first call may come before a script has been fetched.
(() => {
  const asking = new Set(); // promises: calls on their way to the server
  const taken = new Set(); // the names of calls that the server has taken and not yet answered
  const early = new Set(); // the names of calls that were answered before the word that they are taken had come
  const unheard = []; // messages while the client has no stream
  const plainFetch = window.fetch.bind(window);
  const encoder = new TextEncoder();
  let client = null; // the controller of the client's stream
  let question = null; // what to ask the server for each stream of answers
  let reading = false;

  /** Like window.fetch. */
  function fetchForGradio(input, options) {
    const { pathname } = new URL(input instanceof Request ? input.url : input, document.baseURI);
    if (pathname.endsWith('/queue/join')) return join(input, options);
    if (pathname.endsWith('/queue/data')) return answers(new Request(input, options));
    return plainFetch(input, options);
  }

  async function join(input, options) {
    const word = (async () => {
      const response = await plainFetch(input, options);
      const { event_id: call } = await response.clone().json().catch(() => ({}));
      if (response.ok && call && !early.delete(call)) taken.add(call);
      return response;
    })();
    asking.add(word);
    try {
      return await word;
    } finally {
      asking.delete(word);
      read();
    }
  }

  async function answers(request) {
    let own;
    const leave = () => {
      if (client === own) client = null;
    };
    const body = new ReadableStream({ start: (controller) => (own = controller), cancel: leave });
    request.signal.addEventListener('abort', leave);
    client = own;
    unheard.splice(0).forEach(tell);
    question = new Request(request, { signal: null });
    read();
    return new Response(body, { headers: { 'Content-Type': 'text/event-stream' } });
  }

  function tell(message) {
    if (client) client.enqueue(encoder.encode(`data: ${message}\n\n`));
    else unheard.push(message);
  }

  /** Read the server's answers until none is missing, unless that is being done. */
  async function read() {
    if (reading || !question || !taken.size) return;
    reading = true;
    try {
      while (taken.size) {
        await readUntilFarewell();
        await Promise.allSettled(asking); // the farewell may have overtaken the word that a call is taken
      }
    } catch {
      if (taken.size) tell(JSON.stringify({ msg: 'broken_connection', message: 'The connection to the studio broke.' }));
      taken.clear();
    }
    reading = false;
  }

  async function readUntilFarewell() {
    const response = await plainFetch(question);
    if (!response.ok) throw new Error(`The studio answered ${response.status}`);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    try {
      for (let text = ''; ; ) {
        const { value, done } = await reader.read();
        if (done) throw new Error('The stream ended without a farewell');
        const events = (text + value).split('\n\n');
        text = events.pop(); // not whole yet
        for (const event of events) {
          const message = event.slice('data: '.length);
          const { msg, event_id: call } = JSON.parse(message);
          if (msg === 'close_stream') return;
          if (msg === 'process_completed' && !taken.delete(call)) early.add(call);
          tell(message);
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  window.fetch = fetchForGradio;
})();
