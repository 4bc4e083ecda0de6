//go:build !linux

package harness

import (
	"errors"
	"os"
	"sync"
	"time"
)

var errNoNamespaces = errors.New("network namespaces are there on Linux only")

func (h *Host) do(func()) error { return errNoNamespaces }

func openTUN(*Host, string) (*os.File, error) { return nil, errNoNamespaces }

func carry(*sync.WaitGroup, *os.File, *os.File, time.Duration) {}
