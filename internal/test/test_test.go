package test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"testing"
)

// fakeTB is a test that may fail. Only what the helpers call is there.
type fakeTB struct {
	testing.TB
	failed, ended bool
	cleanups      []func()
}

func (f *fakeTB) Helper()               {}
func (f *fakeTB) Error(...any)          { f.failed = true }
func (f *fakeTB) Errorf(string, ...any) { f.failed = true }
func (f *fakeTB) Fatal(...any)          { f.failed, f.ended = true, true; runtime.Goexit() }
func (f *fakeTB) Cleanup(c func())      { f.cleanups = append(f.cleanups, c) }

// run runs f with a fakeTB on a goroutine that Fatal can end.
func run(f func(t *fakeTB)) *fakeTB {
	t, done := &fakeTB{}, make(chan struct{})
	go func() {
		defer close(done)
		f(t)
	}()
	<-done
	return t
}

func TestHelpersFail(t *testing.T) {
	wrapped := fmt.Errorf("open: %w", fs.ErrNotExist)
	for name, tt := range map[string]struct {
		call          func(t *fakeTB)
		failed, ended bool
	}{
		"Must":            {func(t *fakeTB) { Must(t, nil) }, false, false},
		"Must, an error":  {func(t *fakeTB) { Must(t, wrapped) }, true, true},
		"Check":           {func(t *fakeTB) { Check(t, nil) }, false, false},
		"Check, an error": {func(t *fakeTB) { Check(t, wrapped) }, true, false},
		"ErrorIs": {func(t *fakeTB) { ErrorIs(t, wrapped, fs.ErrNotExist) }, false,
			false},
		"ErrorIs, another": {func(t *fakeTB) { ErrorIs(t, wrapped, fs.ErrExist, "here") }, true,
			false},
		"ErrorIs, none":    {func(t *fakeTB) { ErrorIs(t, nil, fs.ErrExist) }, true, false},
		"Equal":            {func(t *fakeTB) { Equal(t, 1, 1) }, false, false},
		"Equal, different": {func(t *fakeTB) { Equal(t, 1, 2, "here") }, true, false},
		"Task": {func(t *fakeTB) { Go(func() error { return nil }).Must(t) }, false,
			false},
		"Task, an error": {func(t *fakeTB) { Go(func() error { return wrapped }).Must(t) }, true,
			true},
		"Texts": {func(t *fakeTB) { Texts(t, "texts")(t, "a", errors.New("one\ntwo")) },
			false, false},
		"Texts, no error": {func(t *fakeTB) { Texts(t, "texts")(t, "none", nil) }, false, false},
		"Texts, another": {func(t *fakeTB) { Texts(t, "texts")(t, "a", errors.New("one")) },
			true, false},
		"Texts, new": {func(t *fakeTB) { Texts(t, "texts")(t, "b", errors.New("one")) },
			true, false},
		"Texts, error gone": {func(t *fakeTB) { Texts(t, "texts")(t, "a", nil) }, true, false},
	} {
		f := run(tt.call)
		if f.failed != tt.failed || f.ended != tt.ended {
			t.Errorf("%s: failed %v, ended %v", name, f.failed, f.ended)
		}
	}
}

func TestTextsUpdate(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, update := range []string{"1", ""} {
		t.Setenv("COWBLK_UPDATE_SCRIPTS", update)
		f := run(func(f *fakeTB) {
			Texts(f, "texts")(f, "a", fmt.Errorf("open %s/x: process %d", t.TempDir(), os.Getpid()))
			for _, c := range f.cleanups {
				c()
			}
		})
		if f.failed {
			t.Errorf("update %q: failed", update)
		}
	}
	if text, err := os.ReadFile("testdata/texts"); err != nil ||
		string(text) != "a => open DIR/x: process PID\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestLog(t *testing.T) {
	var l Log
	log := l.Logger().With("disk", "a")
	log.Info("first", "n", 1)
	log.With("queue", 2).Warn("second", "n", 2)
	log.Debug("not kept")
	Equal(t, fmt.Sprint(l.Values("disk"), l.Values("queue"), l.Values("n")), "[a a] [2] [1 2]")
	Equal(t, l.Count(slog.LevelInfo), 2)
	Equal(t, l.Count(slog.LevelWarn), 1)
}
