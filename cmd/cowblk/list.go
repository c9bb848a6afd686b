package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/cow/store"
)

// listEntry is one element of the JSON output.
type listEntry struct {
	Kind string `json:"kind"` // image, disk or other
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes, as a guest sees it
	Owns int64  `json:"owns"` // bytes allocated by an image, or owned by a disk's head
	// OwnsFrom is the source of Owns, see store.Usage.Source.
	OwnsFrom string         `json:"owns-from,omitempty"`
	Base     string         `json:"base,omitempty"` // of a disk
	Depth    int            `json:"depth"`          // layers of a disk, including the head
	Tags     []string       `json:"tags"`
	Users    []string       `json:"users"` // disks on an image
	Created  time.Time      `json:"created"`
	Serving  *store.Serving `json:"serving,omitempty"`
	Error    string         `json:"error,omitempty"`

	node       *store.Node
	unreadable bool   // the manifest cannot be read; no other field is known
	state      string // of kindOther
}

func newList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images and disks",
		Long: `List images and disks. OWNS is the space that an image uses on the file system, or the amount of
data in a disk's head: what the guest wrote since the disk was created or promoted. The value
for a served disk comes from its process; if that does not answer, it is the durable part in the
files, shown as "≥" (with --json, owns-from: process, header or map).

Anything else that takes a name in the store's directories, such as a file, is listed as "other".

On a narrow terminal names are shortened and columns omitted; "cowblk info NAME" shows everything.
Other outputs get the complete table.`,
		Example:           "  cowblk list\n  cowblk list --json | jq -r '.[] | select(.kind == \"disk\").name'",
		Args:              maxArgs(0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			all, err := listAll(cmd.Context(), s)
			if a.json {
				return errors.Join(a.printJSON(all), err)
			}
			if len(all) == 0 && err == nil {
				a.printEmptyStore(s)
				return nil
			}
			rows := [][]string{{"NAME", "KIND", "SIZE", "OWNS", "LAYERS", "ON", "STATE"}}
			for _, l := range all {
				rows = append(rows, l.row())
			}
			return errors.Join(a.printTable(rows, columns{shrink: []int{0, 5, 6},
				drop: []int{4, 5, 1, 2, 3, 6}}), err)
		},
	}
}

// listAll returns what can be read, and an error for the rest.
func listAll(ctx context.Context, s *store.Store) ([]listEntry, error) {
	all := []listEntry{}
	roots, err := s.Tree()
	nodes := store.Flatten(roots)
	client.UpdateUsage(ctx, s, nodes)
	heads := map[string]*store.Node{}
	for _, n := range nodes {
		if n.Kind == store.KindDisk {
			heads[n.Name] = n
			err = errors.Join(err, nodeErrors([]*store.Node{n}))
		}
	}
	for _, r := range roots {
		if r.Kind == store.KindImage && r.Err == nil {
			l := listEntry{Kind: r.Kind, Name: r.Name, Size: r.Size, Owns: r.Allocated,
				Tags: []string{}, Users: append([]string{}, r.UserNames...), node: r}
			if img, err := s.Image(r.Name); err == nil {
				l.Created = img.Imported
			}
			all = append(all, l)
		}
	}
	names, _ := s.DiskNames() // Tree has reported its error, and those of the disks
	for _, name := range names {
		m, derr := s.Disk(name)
		if derr != nil {
			// An unreadable disk is listed by its name. A disk that was removed meanwhile has no
			// error from Tree.
			if names, nerr := s.DiskNames(); nerr == nil && slices.Contains(names, name) {
				all = append(all, listEntry{Kind: store.KindDisk, Name: name, Tags: []string{},
					Users: []string{}, Error: derr.Error(), node: &store.Node{Err: derr},
					unreadable: true})
			}
			continue
		}
		n := heads[m.Name]
		if n == nil {
			continue // created meanwhile
		}
		l := listEntry{
			Kind: store.KindDisk, Name: m.Name, Size: m.Size, Base: m.Base.String(),
			Depth: len(m.Layers), Tags: []string{}, Users: []string{},
			Created: m.Created, Serving: n.Serving, Error: n.Error, node: n,
		}
		for _, sealed := range m.Sealed() {
			if sealed.Tag != "" {
				l.Tags = append(l.Tags, sealed.Tag)
			}
		}
		if n.Usage != nil {
			l.Owns, l.OwnsFrom = n.Usage.Owned, n.Usage.Source
		}
		all = append(all, l)
	}
	strays, serr := s.NotDirectories()
	for _, t := range strays {
		all = append(all, listEntry{Kind: kindOther, Name: t.Name, Tags: []string{},
			Users: []string{}, Error: t.Err().Error(), state: fmt.Sprintf("not %s %s: %s",
				article(t.Kind), t.Kind, t.What)})
	}
	return all, errors.Join(err, serr)
}

// kindOther is what takes the name of a disk or an image and is none.
const kindOther = "other"

func article(kind string) string {
	if kind == store.KindImage {
		return "an"
	}
	return "a"
}

func (l *listEntry) row() []string {
	if l.Kind == kindOther {
		return []string{l.Name, l.Kind, "", "", "", "", l.state}
	}
	if l.unreadable {
		state := "unreadable"
		if errors.Is(l.node.Err, store.ErrRefused) {
			state = "damaged"
		}
		return []string{l.Name, l.Kind, "", "", "", "", state}
	}
	depth, owns, state := "", bytesText(l.Owns), "stopped"
	if l.Kind == store.KindDisk {
		depth, owns = humanize.Comma(int64(l.Depth)), ""
		if l.node.Usage != nil {
			owns = ownsText(l.node.Usage)
		}
	}
	switch {
	case l.Serving != nil:
		state = servingText(l.Serving)
	case l.node.Unknown:
		state = "open or not"
	case l.Kind == store.KindImage && len(l.Users) == 0:
		state = "unused"
	case l.Kind == store.KindImage:
		state = "base of " + countText(int64(len(l.Users)), "disk")
	}
	return []string{l.Name, l.Kind, bytesText(l.Size), owns, depth, l.Base,
		withProblem(state, l.node.Err)}
}

// agoText formats a time for a person.
func agoText(t time.Time) string {
	return fmt.Sprintf("%s (%s)", t.Local().Format("2006-01-02 15:04:05"), humanize.Time(t))
}
