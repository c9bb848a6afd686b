package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// errEmpty is what is said of an option or a variable that is there and empty.
var errEmpty = errors.New("expected a value, found the empty string, as of a variable that is not set: leave it out for the default")

// errEmptyRequired is errEmpty of an option that has no default.
var errEmptyRequired = errors.New("expected a value, found the empty string, as of a variable that is not set; it is needed and has no default")

// noDefault is the annotation of options that have no default.
const noDefault = "needed"

// checkEmptyFlags refuses every option that was given as "": it would mean the default, which for --store is the system's
// own store, and nobody writes that down.
func checkEmptyFlags(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && isEmptyFlag(f.Value) {
			what := errEmpty
			if f.Annotations[noDefault] != nil {
				what = errEmptyRequired
			}
			err = usagef("%s: --%s: %w", cmd.CommandPath(), f.Name, what)
		}
	})
	return err
}

// isEmptyFlag reports whether an option's value, or one of the values of a list, is blank.
func isEmptyFlag(v pflag.Value) bool {
	if list, ok := v.(pflag.SliceValue); ok {
		all := list.GetSlice()
		for _, s := range all {
			if strings.TrimSpace(s) == "" {
				return true
			}
		}
		return len(all) == 0
	}
	return v.Type() == "string" && strings.TrimSpace(v.String()) == ""
}
