"""Training: one class per procedure. Everything else (size, epochs, learning rates) is in the plan.

base.py reads the plan's values, saves, resumes and stops; supervised.py is the procedure itself; batches.py fixes the
order of the data; start.py loads pre-trained weights, and finetuned.py and strategies.py define what is then trained;
validation.py predicts the fold's validation cases at the end; launch.py starts one or several processes. nnU-Net's own
commands find the classes through stunet/nnunet_ext.
"""
