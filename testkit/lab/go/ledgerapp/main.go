// A small ledger for the lab, in place of a user's own ABCI application.
//
// It takes `key=value`, and `validator <public key in base64> <power> <serial>`, where power 0 removes. It is built
// as one of two versions whose application hashes differ, so that a chain whose nodes are moved from one to the other
// one by one falls apart. A whole chain is moved at a height H like this:
//
//   - version 1 is given HALT_HEIGHT=H: it commits block H, records `haltedAt: H`, lives on and agrees to no other
//     block; with HALT_BY=exit it agrees, and ends instead of making the next;
//   - version 2 is started on the same file: its rule applies from block H+1 on.
//
// A version 2 that begins with an empty file is told H by UPGRADE_HEIGHT=H. With neither, its rule applies at once.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cometbft/cometbft/abci/server"
	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/libs/log"
)

// version is "1" or "2": -ldflags "-X main.version=1".
var version string

const (
	malformed, impossible uint32 = 1, 2
	maxPower                     = 1_000_000_000_000 // Far below what freezes a chain.
	usage                        = "write key=value, or validator <Ed25519 public key in base64> <power> <serial>"
)

// state is the ledger after a block, and the whole content of the file.
type state struct {
	Height     int64             `json:"height"`
	AppHash    []byte            `json:"appHash"`
	Entries    int64             `json:"entries"` // Transactions of each kind that took effect.
	Changes    int64             `json:"changes"`
	Pairs      map[string]string `json:"pairs"`
	Validators map[string]int64  `json:"validators"`          // Powers by public key.
	HaltedAt   int64             `json:"haltedAt,omitempty"`  // The last block before a halt.
	Rule2From  int64             `json:"rule2From,omitempty"` // The first block by the rule of version 2.
}

func (s state) rule() int {
	if s.Rule2From != 0 && s.Height >= s.Rule2From {
		return 2
	}
	return 1
}

// hash is what the chain agrees on after a block. The rule is a part of it; the versions differ in nothing else.
func (s state) hash() []byte {
	// Maps are written in the order of their keys, and strings and numbers always can be.
	text, _ := json.Marshal([]any{s.rule(), s.Entries, s.Changes, s.Pairs, s.Validators})
	sum := sha256.Sum256(text)
	return sum[:]
}

// write replaces the file as a whole: a crash leaves the old state or the new one.
func (s state) write(file string) error {
	text, _ := json.Marshal(s)
	// Not synced: what the lab calls a power cut ends processes only.
	if err := os.WriteFile(file+".part", text, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".part", file)
}

type ledger struct {
	abci.BaseApplication
	log        log.Logger
	file       string
	done, next state // The last committed block, and the one that is being made.
	halt       int64
	rejects    bool
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "ledgerapp %s: "+format+"\n", append([]any{version}, args...)...)
	os.Exit(1)
}

// number reads a height from the environment; 0 = not given.
func number(name string) int64 {
	text := os.Getenv(name)
	height, err := strconv.ParseInt(text, 10, 64)
	if text != "" && (err != nil || height < 1) {
		fail("%s=%q is not a height", name, text)
	}
	return height
}

// begin reads the state, and settles from which block on the rule of version 2 applies.
func (l *ledger) begin(upgrade int64) {
	l.done = state{Pairs: map[string]string{}, Validators: map[string]int64{}}
	s := &l.done
	text, err := os.ReadFile(l.file)
	if err == nil {
		err = json.Unmarshal(text, s)
	}
	switch {
	case err != nil && !os.IsNotExist(err):
		fail("the state cannot be read: %v", err)
	case version == "1" && s.rule() == 2:
		fail("blocks from %d on were made by version 2; start version 2", s.Rule2From)
	case version == "1":
		s.Rule2From = 0
	case s.Rule2From != 0: // By an earlier start.
	case s.HaltedAt != 0:
		s.Rule2From = s.HaltedAt + 1
	case upgrade != 0:
		s.Rule2From = upgrade + 1
	default:
		s.Rule2From = s.Height + 1
	}
	if version == "2" && upgrade != 0 && s.Rule2From != upgrade+1 {
		fail("UPGRADE_HEIGHT=%d, but the rule changes after block %d", upgrade, s.Rule2From-1)
	}
}

// halted says whether this version makes a block. A successor is not held by its predecessor's height.
func (l *ledger) halted(height int64) bool {
	return l.halt != 0 && height > l.halt && l.done.Rule2From != l.halt+1
}

func (l *ledger) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	return &abci.ResponseInfo{
		Data: "ledgerapp", Version: version, LastBlockHeight: l.done.Height, LastBlockAppHash: l.done.AppHash,
	}, nil
}

func (l *ledger) InitChain(_ context.Context, req *abci.RequestInitChain) (*abci.ResponseInitChain, error) {
	for _, one := range req.Validators {
		l.done.Validators[base64.StdEncoding.EncodeToString(one.PubKey.GetEd25519())] = one.Power
	}
	return &abci.ResponseInitChain{}, nil
}

// take applies a transaction to a state. changed = keys that the block has changed already.
func (s *state) take(tx []byte, changed map[string]bool) (*abci.ValidatorUpdate, uint32, string) {
	words := strings.Split(string(tx), " ")
	if key, value, found := strings.Cut(string(tx), "="); words[0] != "validator" && found && key != "" {
		s.Pairs[key] = value
		s.Entries++
		return nil, abci.CodeTypeOK, ""
	}
	if words[0] != "validator" || len(words) != 4 {
		return nil, malformed, usage
	}
	name := words[1]
	key, badKey := base64.StdEncoding.Strict().DecodeString(name)
	power, badPower := strconv.ParseUint(words[2], 10, 63)
	_, badSerial := strconv.ParseUint(words[3], 10, 64)
	if errors.Join(badKey, badPower, badSerial) != nil || len(key) != ed25519.PubKeySize || power > maxPower {
		return nil, malformed, usage
	}
	if _, votes := s.Validators[name]; changed[name] || power == 0 && (!votes || len(s.Validators) == 1) {
		return nil, impossible, "it would freeze the chain: none or the last is removed, or one changed twice in a block"
	}
	if s.Validators[name] = int64(power); power == 0 {
		delete(s.Validators, name)
	}
	changed[name] = true
	s.Changes++
	update := abci.UpdateValidator(key, int64(power), ed25519.KeyType)
	return &update, abci.CodeTypeOK, ""
}

func (l *ledger) CheckTx(_ context.Context, req *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	trial := state{Pairs: map[string]string{}, Validators: maps.Clone(l.done.Validators)}
	_, code, why := trial.take(req.Tx, map[string]bool{})
	return &abci.ResponseCheckTx{Code: code, Log: why}, nil
}

func (l *ledger) ProcessProposal(_ context.Context, req *abci.RequestProcessProposal) (*abci.ResponseProcessProposal, error) {
	if l.rejects && l.halted(req.Height) {
		l.log.Info("halted: no block is agreed to", "haltedAt", l.halt, "height", req.Height)
		return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_REJECT}, nil
	}
	return &abci.ResponseProcessProposal{Status: abci.ResponseProcessProposal_ACCEPT}, nil
}

func (l *ledger) FinalizeBlock(_ context.Context, req *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	if l.halted(req.Height) {
		fail("halted at height %d (HALT_HEIGHT): block %d is not for this version", l.halt, req.Height)
	}
	l.next = l.done
	l.next.Height = req.Height
	l.next.Pairs, l.next.Validators = maps.Clone(l.done.Pairs), maps.Clone(l.done.Validators)
	answer, changed := &abci.ResponseFinalizeBlock{}, map[string]bool{}
	for _, tx := range req.Txs {
		update, code, why := l.next.take(tx, changed)
		answer.TxResults = append(answer.TxResults, &abci.ExecTxResult{Code: code, Log: why})
		if update != nil {
			answer.ValidatorUpdates = append(answer.ValidatorUpdates, *update)
		}
	}
	l.next.AppHash = l.next.hash()
	answer.AppHash = l.next.AppHash
	return answer, nil
}

func (l *ledger) Commit(context.Context, *abci.RequestCommit) (*abci.ResponseCommit, error) {
	if l.halted(l.next.Height + 1) {
		l.next.HaltedAt = l.next.Height
		l.log.Info("the last block before the halt is committed", "haltedAt", l.next.Height)
	} else if version == "1" {
		l.next.HaltedAt = 0 // It went on, so no successor begins there.
	}
	if err := l.next.write(l.file); err != nil {
		fail("block %d cannot be kept: %v", l.next.Height, err)
	}
	l.done = l.next
	return &abci.ResponseCommit{}, nil
}

func (l *ledger) Query(_ context.Context, req *abci.RequestQuery) (*abci.ResponseQuery, error) {
	value := l.done.Pairs[string(req.Data)]
	return &abci.ResponseQuery{Key: req.Data, Value: []byte(value), Height: l.done.Height}, nil
}

func main() {
	if version != "1" && version != "2" {
		fail("it was built without its version")
	}
	app := &ledger{log: log.NewTMLogger(os.Stdout), file: filepath.Join(os.Getenv("APP_DATA"), "ledger.json")}
	app.halt, app.rejects = number("HALT_HEIGHT"), os.Getenv("HALT_BY") != "exit"
	app.begin(number("UPGRADE_HEIGHT"))
	app.log.Info("ledgerapp", "version", version, "height", app.done.Height, "rule2From", app.done.Rule2From, "halt", app.halt)
	service := server.NewSocketServer(os.Getenv("ABCI_ADDRESS"), app)
	service.SetLogger(app.log.With("module", "abci"))
	if err := service.Start(); err != nil {
		fail("cannot listen on ABCI_ADDRESS=%q: %v", os.Getenv("ABCI_ADDRESS"), err)
	}
	ended, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	<-ended.Done()
}
