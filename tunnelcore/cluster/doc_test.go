package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// docs/cluster.md says what the code does.
func TestDoc(t *testing.T) {
	b, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	wanted := []string{
		Path, "`" + subprotocol + "`", "?from=ID&from_epoch=EPOCH&nonce=32 HEX DIGITS&to=ID&to_epoch=EPOCH",
		fmt.Sprintf("at most %d bytes, its MAC included", maxText), fmt.Sprintf("%d KiB of JSON", maxInfo>>10),
		fmt.Sprintf("valid there, %d at most", maxSecrets), fmt.Sprintf("| %d |", maxInbound),
		fmt.Sprintf("| %d, %d s each; the oldest makes room |", maxUnproved, int(proveTime.Seconds())),
		fmt.Sprintf("| %d; others wait %d s |", maxDialing, int(placeTime.Seconds())),
		fmt.Sprintf("| %d, for %d s at most (%d s at the owner) |", maxIdle, int((idleTime + tendTime).Seconds()), int(idlePatience.Seconds())),
		fmt.Sprintf("| %d s |", int(serveTime.Seconds())), fmt.Sprintf("says nothing for %d s", int(answerTime.Seconds())),
		fmt.Sprintf("after %d ms at most", staleTime.Milliseconds()), fmt.Sprintf("every %d ms", waitingEvery.Milliseconds()),
		fmt.Sprintf("for %d to %d s", int(((unheardMost - 1) * tendTime).Seconds()), int((unheardMost * tendTime).Seconds())),
		fmt.Sprintf("pinged every %d s", int((keepAliveEvery * tendTime).Seconds())),
	}
	for _, code := range []int{closeAborted, closeFailed, closeLost, closeUnsent, closeUnproved} {
		wanted = append(wanted, fmt.Sprintf("| %d |", code))
	}
	for _, k := range []kind{kindOpen, kindAgent, kindProbe, kindReplaced, kindInfo} {
		found := false
		for text, q := range requests {
			found = found || q.Kind == k && strings.Contains(doc, "| `"+text+"` |")
		}
		if !found {
			t.Errorf("no request of kind %s that is tested", k)
		}
	}
	for _, text := range answersThere {
		wanted = append(wanted, "`"+text+"`")
	}
	for _, text := range wanted {
		if !strings.Contains(doc, text) {
			t.Errorf("docs/cluster.md does not say: %s", text)
		}
	}
}
