// Package lint checks rules of the source tree that no common linter covers: which package may
// import which, where unsafe may be used, and what may read the wall clock. Each test is a rule.
package lint
