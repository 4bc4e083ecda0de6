package registry

import (
	"flag"
	"os"
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		claimForEver(path) // this process is the child of TestKill
	}
	flag.Parse()
	// Those on a running clock wait, all at the same time.
	if err := flag.Set("test.parallel", "100"); err != nil {
		panic(err)
	}
	leak.Main(m)
}
