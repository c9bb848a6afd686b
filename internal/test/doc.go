// Package test has what the tests of every package need. Must ends a test at an error; Eventually
// waits for a condition that another goroutine or process brings about; NoLeaks waits for the end
// of everything that a test has started. No test judges by how long something takes: the limits
// only end a test that would hang.
package test
