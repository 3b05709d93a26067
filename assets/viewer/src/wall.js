// <studio-wall>: keeps the videos inside it turning together. The first one sets the time.
const DRIFT = 0.08; // seconds; less is not seen, and seeking costs

export class Wall extends HTMLElement {
  connectedCallback() {
    this.timer = setInterval(() => this.align(), 500);
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  align() {
    const [first, ...others] = [...this.querySelectorAll('video')].filter((video) => video.duration);
    if (!first) return;
    const share = first.currentTime / first.duration;
    for (const video of others) {
      const wanted = share * video.duration;
      const off = Math.abs(video.currentTime - wanted);
      if (Math.min(off, video.duration - off) > DRIFT) video.currentTime = wanted;
      if (video.paused && !first.paused) video.play().catch(() => {});
    }
  }
}
