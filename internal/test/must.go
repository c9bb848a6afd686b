package test

import (
	"errors"
	"testing"
)

// Must ends the test if err is not nil. Details say where, for all of these functions.
func Must(t testing.TB, err error, details ...any) {
	t.Helper()
	if err != nil {
		t.Fatal(append(details, err)...)
	}
}

// Check marks the test as failed if err is not nil, and lets it go on.
func Check(t testing.TB, err error, details ...any) {
	t.Helper()
	if err != nil {
		t.Error(append(details, err)...)
	}
}

// ErrorIs marks the test as failed unless errors.Is(err, want).
func ErrorIs(t testing.TB, err, want error, details ...any) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("found error %v, expected %v %v", err, want, details)
	}
}

// Err returns the error of a call with another result: Must(t, Err(f.Write(p))).
func Err[T any](_ T, err error) error { return err }

// Equal marks the test as failed unless got == want.
func Equal[T comparable](t testing.TB, got, want T, details ...any) {
	t.Helper()
	if got != want {
		t.Errorf("found %v, expected %v %v", got, want, details)
	}
}
