// Package lint holds the rules of the source tree that no linter knows: which
// package may import which, and where unsafe may be used. Its tests are the
// rules.
package lint
