// Package lint checks rules of the source tree that no common linter covers: which package may
// import which, where unsafe may be used, what may read the wall clock, and whether CONTRIBUTING.md
// and the documents say what the source says. Each test is a rule.
package lint
