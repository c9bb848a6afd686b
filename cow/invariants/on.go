//go:build invariants

package invariants

// Enabled reports whether checks are on. It is a constant: checks that are off cost nothing.
const Enabled = true
