"""The folder that the variable nnUNet_extTrainer may point at, for stock `nnUNetv2_train -tr STUNetTrainer`."""
