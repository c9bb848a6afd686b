package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// exactArgs is cobra.ExactArgs with an error that names the missing argument. names lists the
// arguments in order.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s: %s is missing\nusage: %s", cmd.CommandPath(), names[len(args)],
				cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%s: unexpected argument %q\nusage: %s", cmd.CommandPath(),
				args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// minArgs accepts at least n arguments; name is the argument's name in the usage line.
func minArgs(n int, name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("%s: %s is missing\nusage: %s", cmd.CommandPath(), name, cmd.UseLine())
		}
		return nil
	}
}

// maxArgs accepts at most n arguments.
func maxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usagef("%s: unexpected argument %q\nusage: %s", cmd.CommandPath(), args[n],
				cmd.UseLine())
		}
		return nil
	}
}

// distinctArgs is minArgs that also refuses duplicates.
func distinctArgs(n int, name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, arg := range args {
			if slices.Contains(args[:i], arg) {
				return usagef("%s: %q is named twice", cmd.CommandPath(), arg)
			}
		}
		return minArgs(n, name)(cmd, args)
	}
}
