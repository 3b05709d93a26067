// Gradio's client reads the answers to all of a page's calls from one stream, which the server ends with a word of
// farewell once nothing is left to answer. It would wait for ever in two cases, of which this relieves it:
// * The farewell is overtaken by the server's word that it has taken another call (they come on two connections). The
//   client counts on the stream for the new call, then closes it. Here the stream goes on until each call is answered.
// * The connection breaks when no answer is awaited. The client tells nobody and goes on counting on that stream.
//   Here a broken stream says to all who wait that it is broken, and then farewell.
// It stands in the page itself, for the first call may come before a script has been fetched.
(() => {
  const taken = new Set(); // the names of calls that the server has taken and not yet answered
  const asking = new Set(); // promises: calls on their way to the server
  const plainFetch = window.fetch.bind(window);
  const encoder = new TextEncoder();

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
      if (response.ok && call) taken.add(call);
      return response;
    })();
    asking.add(word);
    try {
      return await word;
    } finally {
      asking.delete(word);
    }
  }

  async function answers(request) {
    const messages = messagesOf(request);
    const body = new ReadableStream({
      async pull(controller) {
        const { value, done } = await messages.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(`data: ${value}\n\n`));
      },
      cancel: () => messages.return(),
    });
    return new Response(body, { headers: { 'Content-Type': 'text/event-stream' } });
  }

  async function* messagesOf(request) {
    try {
      do {
        yield* untilFarewell(request);
        await Promise.allSettled(asking);
      } while (taken.size);
    } catch (error) {
      if (request.signal.aborted) return;
      taken.clear();
      yield JSON.stringify({ msg: 'broken_connection', message: 'The connection to the studio broke.' });
    }
    yield JSON.stringify({ msg: 'close_stream' });
  }

  async function* untilFarewell(request) {
    const response = await plainFetch(request);
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
          if (msg === 'process_completed') taken.delete(call);
          yield message;
        }
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  window.fetch = fetchForGradio;
})();
