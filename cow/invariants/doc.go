// Package invariants switches costly checks of cowblk's own rules on: bounds, ownership that only
// rises, pins and claims that balance, memory that is poisoned when it is released. A violation
// panics: it is a bug of cowblk, never an input.
//
// The build tag "invariants" sets Enabled; "make unit" and "make race" use it.
package invariants
