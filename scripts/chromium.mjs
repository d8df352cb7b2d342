// A Chromium for the tests that open pages: the one that is there, else Debian's, installed by apt-get.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import process from 'node:process';

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** Path of an installed Chromium; DIAD_CHROMIUM names another one. Undefined without any. */
export function findChromium() {
  return [process.env.DIAD_CHROMIUM, ...PLACES].find((file) => file && existsSync(file));
}

/** Installs one where there is none. */
export function ensureChromium() {
  if (findChromium()) return;
  if (process.getuid?.() !== 0 || !existsSync('/usr/bin/apt-get')) {
    throw new Error(`The tests of pages need Chromium: install it, or name it in DIAD_CHROMIUM (looked in ${PLACES.join(', ')})`);
  }
  const options = { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } };
  execFileSync('apt-get', ['update', '-qq'], options);
  execFileSync('apt-get', ['install', '-y', '-qq', '--no-install-recommends', 'chromium'], options);
  if (!findChromium()) throw new Error('apt-get installed chromium, but it is in none of its usual places; name it in DIAD_CHROMIUM');
}
