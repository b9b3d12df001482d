/** Builds the dashboard into api/static, each text file with its compressed twin. */

import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { constants, gzipSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** So that the gateway has nothing to compress. */
function compressed(): Plugin {
  let folder = '';
  return {
    name: 'compressed',
    apply: 'build',
    configResolved: (config) => {
      folder = join(config.build.outDir, config.build.assetsDir);
    },
    closeBundle: () => {
      for (const name of readdirSync(folder).filter((name) => /\.(js|css|svg)$/.test(name))) {
        const content = readFileSync(join(folder, name));
        writeFileSync(join(folder, `${name}.gz`), gzipSync(content, { level: constants.Z_BEST_COMPRESSION }));
      }
    },
  };
}

export default defineConfig({
  plugins: [compressed()],
  resolve: {
    alias: [
      // For sources outside this folder, such as examples/react.
      { find: /^react($|\/)/, replacement: here('node_modules/react') + '$1' },
      { find: /^epochcast-stream\/react$/, replacement: here('src/stream/useTrainingJob.ts') },
      { find: /^epochcast-stream$/, replacement: here('src/stream/index.ts') },
    ],
  },
  build: {
    outDir: here('../api/static'),
    emptyOutDir: true,
    target: 'es2022',
    // Inline data would need an exception from the content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { '/api': { target: 'http://localhost:8000', ws: true } } },
});
