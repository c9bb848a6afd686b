package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// exactArgs is cobra.ExactArgs with an error that names what is missing: names are the arguments in order.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s: %s is missing\nusage: %s", cmd.CommandPath(), names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%s: unexpected argument %q\nusage: %s", cmd.CommandPath(), args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// minArgs is for commands that take one or more of the thing called name.
func minArgs(n int, name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("%s: %s is missing\nusage: %s", cmd.CommandPath(), name, cmd.UseLine())
		}
		return nil
	}
}

// maxArgs is for commands whose arguments are optional.
func maxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usagef("%s: unexpected argument %q\nusage: %s", cmd.CommandPath(), args[n], cmd.UseLine())
		}
		return nil
	}
}

// distinctArgs is atLeast(1, name) for commands to which a name twice makes no sense.
func distinctArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, arg := range args {
			if slices.Contains(args[:i], arg) {
				return usagef("%s: %q is named twice", cmd.CommandPath(), arg)
			}
		}
		return minArgs(1, name)(cmd, args)
	}
}

// unique is args without those that came before, in their order.
func unique(args []string) (all []string) {
	for _, arg := range args {
		if !slices.Contains(all, arg) {
			all = append(all, arg)
		}
	}
	return all
}
