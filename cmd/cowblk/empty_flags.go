package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// errEmpty is the error of an option or variable that is set to the empty string.
var errEmpty = errors.New("expected a value, found the empty string, perhaps of a variable that is not set: leave it out for the default")

// errEmptyRequired is errEmpty for an option that has no default.
var errEmptyRequired = errors.New(
	"expected a value, found the empty string, perhaps of a variable that is not set; it is required and has no default")

// noDefault is the annotation of options that have no default.
const noDefault = "needed"

// checkEmptyFlags refuses options whose value is "". An unset shell variable would otherwise select
// the default silently, for --store the system's own store.
func checkEmptyFlags(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && isEmptyFlag(f.Value) {
			reason := errEmpty
			if f.Annotations[noDefault] != nil {
				reason = errEmptyRequired
			}
			err = usagef("%s: --%s: %w", cmd.CommandPath(), f.Name, reason)
		}
	})
	return err
}

// isEmptyFlag reports whether the value of an option, or one element of a list, is blank.
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
