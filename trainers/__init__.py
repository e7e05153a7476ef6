"""How a network is trained: one class per procedure, with everything else (size, epochs, rates) in the plan.

base.py reads the plan's values, saves, resumes and stops; supervised.py is the procedure; batches.py the data's order;
start.py loads what it starts from, finetuned.py and strategies.py say what is trained then; validation.py predicts the
fold's validation cases at the end; launch.py starts one or several processes. nnU-Net's own commands find the classes
through stunet/nnunet_ext.
"""
