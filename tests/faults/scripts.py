"""What the faults interrupt: scripts that compute the same bits whatever happens to them, and note each step."""

# Trains a network with dropout on noise that each epoch draws anew. `args`: seconds a step.
TRAIN = """
import sys
import torch
import epochcast

pause_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.02
run = epochcast.init()
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
run.state(model=model, optimizer=optimizer)
print("resumed" if run.resume() else "fresh", flush=True)
for epoch in run.epochs():
    for step in range(4):
        x = torch.randn(16, 8)
        loss = (model(x).squeeze(1) - x.sum(dim=1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        note_step(f"{epoch}/{step}")
        time.sleep(pause_s)
    run.report(epoch=epoch, train_loss=loss.item())
    run.checkpoint()
if run.finished:
    run.save_model(model)
"""

# Hears no request to stop.
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    note_step("0/0")
    time.sleep(0.05)
"""
