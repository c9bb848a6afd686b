package test

import (
	"errors"
	"testing"
)

// Must ends the test if err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Check marks the test as failed if err is not nil, and lets it go on.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// ErrorIs marks the test as failed unless errors.Is(err, want). Details say where in a table or loop.
func ErrorIs(t testing.TB, err, want error, details ...any) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("found error %v, expected %v %v", err, want, details)
	}
}

// Err returns the error of a call with another result: Must(t, Err(f.Write(p))).
func Err[T any](_ T, err error) error { return err }

// Equal marks the test as failed unless got == want. Details say what it is, and where in a table or
// loop.
func Equal[T comparable](t testing.TB, got, want T, details ...any) {
	t.Helper()
	if got != want {
		t.Errorf("found %v, expected %v %v", got, want, details)
	}
}
