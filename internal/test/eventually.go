package test

import (
	"fmt"
	"os"
	"testing"
	"time"
)

const (
	limit    = 30 * time.Second
	interval = time.Millisecond
)

// Eventually calls cond until it returns true. It ends the test if that takes 30 seconds; details
// are then evaluated and printed.
func Eventually(t testing.TB, what string, cond func() bool, details ...fmt.Stringer) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(interval) {
		if time.Now().After(end) {
			for _, d := range details {
				what += "\n" + d.String()
			}
			t.Fatalf("not reached: %s", what)
		}
	}
}

// Exists waits until a path exists.
func Exists(t testing.TB, path string) {
	t.Helper()
	Eventually(t, path+" exists", func() bool {
		_, err := os.Lstat(path)
		return err == nil
	})
}
