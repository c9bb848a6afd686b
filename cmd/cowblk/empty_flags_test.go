package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every option with a string value refuses the empty string, with any other options, and creates
// nothing.
func TestEmptyOptions(t *testing.T) {
	s := newScript(t)
	tried := 0
	var try func(cmd *cobra.Command, words []string)
	try = func(cmd *cobra.Command, words []string) {
		for _, sub := range cmd.Commands() {
			try(sub, append(append([]string(nil), words...), sub.Name()))
		}
		if !cmd.Runnable() || len(words) == 0 {
			return
		}
		each := func(f *pflag.Flag) {
			_, list := f.Value.(pflag.SliceValue)
			if f.Value.Type() != "string" && !list {
				return
			}
		values:
			for _, value := range []string{"", " ", "\t\n"} {
				tried++
				var errs bytes.Buffer
				for _, arg := range [][]string{nil, {"x"}, {"x", "y"}} {
					errs.Reset()
					args := append(append(append([]string(nil), words...), "--"+f.Name+"="+value),
						arg...)
					if code := run(args, s.app(&bytes.Buffer{}, &errs)); code == exitUsage &&
						strings.Contains(errs.String(), "--"+f.Name+": expected a value") {
						continue values
					}
				}
				t.Errorf("%v --%s=%q: %s", words, f.Name, value, errs.String())
			}
		}
		cmd.LocalFlags().VisitAll(each)
		cmd.InheritedFlags().VisitAll(each)
	}
	root := newRoot(s.app(&bytes.Buffer{}, &bytes.Buffer{}))
	try(root, nil)
	if tried < 40 {
		t.Errorf("only %d options were tried", tried)
	}
}

// An empty COWBLK_STORE is an error. --store takes precedence, and commands without a store ignore
// it.
func TestEmptyEnvironment(t *testing.T) {
	s := newScript(t)
	for value, refused := range map[string]bool{"": true, "  ": true, s.dir: false} {
		for _, tc := range []struct {
			args    []string
			refused bool
		}{
			{[]string{"list"}, refused}, {[]string{"create", "a", "--size", "1M"}, refused},
			{[]string{"check"}, refused}, {[]string{"--store", s.dir, "list"}, false},
			{[]string{"version"}, false}, {[]string{"help"}, false},
		} {
			if tc.args[0] == "create" && !refused {
				continue // succeeds
			}
			var errs bytes.Buffer
			a := s.app(&bytes.Buffer{}, &errs)
			a.getenv = func(name string) string {
				if name == "COWBLK_STORE" {
					return value
				}
				return ""
			}
			a.lookupEnv = func(name string) (string, bool) {
				return a.getenv(name), name == "COWBLK_STORE"
			}
			code := run(tc.args, a)
			if tc.refused != (code == exitUsage) || tc.refused && !strings.Contains(errs.String(),
				"COWBLK_STORE: expected a value") {
				t.Errorf("COWBLK_STORE=%q %v: exit %d, %s", value, tc.args, code, &errs)
			}
		}
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
