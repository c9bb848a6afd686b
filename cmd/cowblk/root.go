package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

const rootLong = `cowblk serves disks made of copy-on-write layers to QEMU over vhost-user-blk.

A store contains named images and disks. A disk is a stack: an image (or any file or
block device) at the bottom, sealed layers that never change, and one writable head.`

const rootExample = `  # an image, a disk on top of it, a guest: as easy as 1-2-3
  cowblk import golden.qcow2 debian-12
  cowblk create vm1 --from debian-12
  cowblk run vm1

  # freeze what vm1 holds now under a name, and start another disk from there
  cowblk promote vm1 --tag configured
  cowblk create vm2 --from vm1@configured
  cowblk tree`

// Groups of commands in the help text.
const (
	groupDisks = "disks"
	groupRun   = "run"
)

// newRoot builds the command tree.
func newRoot(a *app) *cobra.Command {
	version := false
	root := &cobra.Command{
		Use:           "cowblk",
		Short:         "Copy-on-write disks for QEMU over vhost-user-blk",
		Long:          rootLong,
		Example:       rootExample,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			slog.SetDefault(a.logger()) // libraries log here, too
			return checkEmptyFlags(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if version && len(args) == 0 {
				return a.printVersion()
			}
			if len(args) == 0 {
				return cmd.Help()
			}
			msg := fmt.Sprintf("%q is not a cowblk command", args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				msg += "; did you mean " + strings.Join(s, " or ") + "?"
			}
			return usagef("%s", msg)
		},
	}
	root.Flags().BoolVar(&version, "version", false, "print the version")
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %s", cmd.CommandPath(), flagText(err))
	})
	pf := root.PersistentFlags()
	pf.StringVar(&a.storeDir, "store", "",
		"`DIR` of images and disks (default $COWBLK_STORE, else\n/var/lib/cowblk for root, $XDG_DATA_HOME/cowblk for others)")
	pf.BoolVar(&a.json, "json", false, "print JSON instead of text")
	pf.BoolVar(&a.debug, "debug", false, "log more to standard error")
	_ = root.MarkPersistentFlagDirname("store")

	root.AddGroup(&cobra.Group{ID: groupDisks, Title: "Images and disks:"},
		&cobra.Group{ID: groupRun, Title: "Guests:"})
	for _, c := range []*cobra.Command{
		newImport(a), newCreate(a), newList(a), newTree(a), newInfo(a), newPromote(a),
		newRollback(a), newExport(a), newRemove(a), newCheck(a), newTrustBase(a),
	} {
		c.GroupID = groupDisks
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{newRun(a), newServe(a), newStop(a), newQEMUArgs(a),
		newXML(a), newAttach(a), newDetach(a), newWatch(a), newResume(a), newBench(a)} {
		c.GroupID = groupRun
		root.AddCommand(c)
	}
	root.AddCommand(newVersion(a), newExitCodes())
	refuseUnknownTopics(root)
	wrapHelp(root, a)
	return root
}

// refuseUnknownTopics makes errors of "cowblk help nosuch" and "cowblk completion nosuch", which
// cobra answers with a general help and exit code 0.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Run, c.RunE = nil, func(_ *cobra.Command, args []string) error {
				topic, rest, err := root.Find(args)
				if err != nil || len(rest) > 0 {
					return usagef("help: %q is not a cowblk command nor a topic of its help",
						strings.Join(args, " "))
				}
				topic.InitDefaultHelpFlag()
				return topic.Help()
			}
		case "completion":
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef(
						"completion: %q is not a shell that scripts can be made for: expected bash, zsh, fish or powershell", args[0])
				}
				return c.Help()
			}
		}
	}
}
