// Mocha's spec reporter that also writes {passes, failures, pending, tests: [{title, seconds}]} to a file
// (reporter option "output"). Lists slow hooks, such as loading a model, as tests.
const { writeFileSync } = require('node:fs');
const { reporters } = require('mocha');

module.exports = class SpecWithCounts extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options);
    const { output } = options.reporterOptions ?? {};
    const tests = [];
    const record = (one) => {
      if (one.duration !== undefined) tests.push({ title: one.fullTitle(), seconds: one.duration / 1000 });
    };
    for (const event of ['test end', 'hook end']) runner.on(event, record);
    runner.once('end', () => {
      const { passes, failures, pending } = this.stats;
      if (output) writeFileSync(output, JSON.stringify({ passes, failures, pending, tests }));
    });
  }
};
