package main

import (
	"errors"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newTree(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tree [NAME]",
		Short: "Show images, layers, tags and disks, and who shares what",
		Long: `Show every image and base, the sealed layers on it with their tags, and the disks; or
only what an image carries, or what a disk lies on.

A disk's line stands for its head. OWNS is how much a layer has of its own, BLOCKS the
same in blocks; what it does not own comes from the line it hangs from. The blocks of a
disk that is being served are those written before its last flush.`,
		Example:           "  cowblk tree\n  cowblk tree vm1\n  cowblk tree --json",
		Args:              atMost(1),
		ValidArgsFunction: a.complete(1, diskNames, imageNames),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			roots, damage := s.Tree()
			if len(args) == 1 {
				if err := store.CheckName("image or disk", args[0]); err != nil {
					return err
				}
				if roots, err = s.Find(roots, args[0]); err != nil {
					return errors.Join(err, damage)
				}
			}
			if a.json {
				if roots == nil {
					roots = []*store.Node{}
				}
				return errors.Join(a.printJSON(roots), damage)
			}
			if len(roots) == 0 && damage == nil {
				a.say("nothing in store %s yet; to begin: cowblk import FILE NAME", s.Dir())
				return nil
			}
			rows := [][]string{{"NAME", "KIND", "SIZE", "OWNS", "BLOCKS", "STATE"}}
			for _, r := range roots {
				rows = appendNode(rows, r, "", "")
			}
			return errors.Join(a.printTable(rows), damage)
		},
	}
}

// appendNode adds the lines of a node and of what hangs from it: its own begins with first, theirs with rest.
func appendNode(rows [][]string, n *store.Node, first, rest string) [][]string {
	rows = append(rows, nodeRow(n, first))
	for i, c := range n.Children {
		if i < len(n.Children)-1 {
			rows = appendNode(rows, c, rest+"├─ ", rest+"│  ")
		} else {
			rows = appendNode(rows, c, rest+"└─ ", rest+"   ")
		}
	}
	return rows
}

func nodeRow(n *store.Node, indent string) []string {
	name := n.Name
	switch n.Kind {
	case store.KindZeros:
		name = "(no base)"
	case store.KindLayer:
		name = n.UUID.String()[:8]
		if n.Tag != "" {
			name = "@" + n.Tag
		}
	}
	size, owns, blocks := "", "", ""
	if n.Size > 0 {
		size = bytesText(n.Size)
	}
	switch {
	case n.Usage != nil:
		owns, blocks = bytesText(n.Usage.Owned), humanize.Comma(int64(n.Usage.Blocks))
	case n.Kind == store.KindImage && n.Error == "":
		owns = bytesText(n.Allocated)
	}
	return []string{indent + name, n.Kind, size, owns, blocks, nodeState(n)}
}

func nodeState(n *store.Node) string {
	users := strings.Join(n.Users, ", ")
	switch {
	case n.Unread:
		return "cannot be read: " + strings.ReplaceAll(n.Error, "\n", " ")
	case n.Error != "":
		return "DAMAGED: " + strings.ReplaceAll(n.Error, "\n", " ")
	case n.Serving != nil:
		return n.Serving.String()
	case n.Kind == store.KindDisk:
		return "stopped"
	case len(n.Users) == 0:
		return "unused"
	case n.Kind == store.KindLayer && len(n.Users) == 1:
		return "only " + users
	case n.Kind == store.KindLayer:
		return "shared by " + users
	}
	return "base of " + users
}
