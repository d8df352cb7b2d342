// Digest of a bundle that is not loaded.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { DiadError } from '../errors.js';

/**
 * Computes the digest of a bundle from its manifest. Equals `diad.info.bundle.digest` of the loaded bundle.
 *
 * @throws DiadError ERR_DIAD_BUNDLE_NOT_FOUND
 */
export async function bundleDigest(folder: string): Promise<string> {
  try {
    return createHash('sha256')
      .update(await readFile(path.join(folder, 'manifest.json')))
      .digest('hex');
  } catch (error) {
    throw new DiadError('ERR_DIAD_BUNDLE_NOT_FOUND', `${folder} holds no manifest.json`, { cause: error });
  }
}
